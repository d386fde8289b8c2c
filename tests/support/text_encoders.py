"""ONNX graphs of text encoders in the usual layout of exporters, and folders of them.

They are tiny: a row for each token, position and segment, a layer, and the mask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support import texts

WIDTH = 16
POSITIONS = 40
WORDS = len(json.loads(texts.tokenizer_json())["model"]["vocab"])

_random = np.random.default_rng(5)
ROWS, PLACES, SEGMENTS, LAYER = (
    _random.normal(size=(count, WIDTH), scale=scale).astype(np.float32)
    for count, scale in ((WORDS, 1), (POSITIONS, 0.1), (2, 0.1), (WIDTH, 0.2))
)


def encoder(
    *,
    element: int = TensorProto.INT64,
    dims: Sequence[str | int] = ("batch", "sequence"),
    inputs: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
    outputs: Sequence[str] = ("last_hidden_state",),
    rows: NDArray[np.float32] = ROWS,
    extra: Sequence[onnx.NodeProto] = (),
) -> onnx.ModelProto:
    """Return a graph with some of the usual outputs.

    A row of ``last_hidden_state`` is that of its token, position and segment, through a layer and
    a hyperbolic tangent, times its mask; ``sentence_embedding`` is their sum; ``scalar`` is the sum
    of all.
    """
    make = helper.make_node
    table = "rows"
    nodes = [make("Gather", [table, "input_ids"], ["words"], axis=0)]
    last = "words"
    if "token_type_ids" in inputs:
        nodes += [
            make("Gather", ["segments", "token_type_ids"], ["kinds"], axis=0),
            make("Add", [last, "kinds"], ["typed"]),
        ]
        last = "typed"
    nodes += [
        make("Shape", ["input_ids"], ["shape"]),
        make("Gather", ["shape", "one"], ["length"], axis=0),
        make("Range", ["zero", "length", "one"], ["numbers"]),
        make("Gather", ["places", "numbers"], ["positions"], axis=0),
        make("Add", [last, "positions"], ["placed"]),
        make("MatMul", ["placed", "layer"], ["mixed"]),
        make("Tanh", ["mixed"], ["bent"]),
    ]
    last = "bent"
    if "attention_mask" in inputs:
        nodes += [
            make("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            make("Unsqueeze", ["mask", "two"], ["column"]),
            make("Mul", [last, "column"], ["masked"]),
        ]
        last = "masked"
    nodes += [
        make("Identity", [last], ["last_hidden_state"]),
        make("ReduceSum", [last, "ones"], ["sentence_embedding"], keepdims=0),
        make("ReduceSum", [last], ["scalar"], keepdims=0),
        make("Identity", [last], ["logits"]),
        *extra,
    ]
    constants: Mapping[str, NDArray[Any]] = {
        "rows": rows,
        "places": PLACES,
        "segments": SEGMENTS,
        "layer": LAYER,
        "zero": np.array(0),
        "one": np.array(1),
        "two": np.array([2]),
        "ones": np.array([1]),
    }
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, element, dims) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = {"", *(node.domain for node in extra)}
    opsets = [helper.make_opsetid(domain, 17 if not domain else 1) for domain in sorted(domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def hidden(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return ``last_hidden_state`` (T, WIDTH) of one text; the reference of ``encoder``."""
    placed = ROWS[tokens] + PLACES[: len(tokens)] + SEGMENTS[0]
    return np.asarray(np.tanh(placed @ LAYER), dtype=np.float32)


def folder(root: Path, model: onnx.ModelProto | None = None, **files: object) -> Path:
    """Write ``model.onnx``, ``tokenizer.json`` and JSON files, whose names are keys without dots.

    A double underscore is a slash: ``pooling__config`` is ``pooling/config.json``.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "tokenizer.json").write_bytes(texts.tokenizer_json())
    if model is not None:
        onnx.save(model, root / "model.onnx")
    for key, content in files.items():
        path = root / f"{key.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root
