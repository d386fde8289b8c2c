"""Completion of a text encoder's ONNX graph: tokens in, one embedding out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from topwork_trainer.backbones.onnx_graph import shape_text
from topwork_trainer.backbones.texts.graph import EncoderInputs

Pooling = Literal["mean", "cls"]

_PREFIX = "model/"
"""Prefix of all names of the user's graph, so that they differ from ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """Reduction of an encoder's output to one row per text."""

    pooling: Pooling | None
    """Of an output (N, T, D) with a row per token: their mean, or the first; None: it is (N, D)."""
    normalise: bool
    """Whether embeddings are scaled to length 1."""

    @classmethod
    def of(cls, shape: tuple[int, ...], wanted: Pooling | None, *, normalise: bool) -> Reduction:
        """Return the reduction for the output's shape. Raises ValueError if there is none."""
        if len(shape) == 2:
            if wanted is not None:
                raise ValueError(
                    f"its output {shape_text(shape)} has one row per text, so there is nothing for "
                    "--pooling"
                )
            return cls(pooling=None, normalise=normalise)
        if len(shape) != 3:
            raise ValueError(
                f"its output has the shape {shape_text(shape)}; an encoder gives (texts, values) "
                "or (texts, tokens, values)"
            )
        return cls(pooling=wanted or "mean", normalise=normalise)

    def apply(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings (N, D) of an output; the reference of ``nodes``."""
        if self.pooling == "mean":
            output = output.mean(axis=1)
        elif self.pooling == "cls":
            output = output[:, 0]
        if self.normalise:
            lengths = np.linalg.norm(output, axis=1, keepdims=True)
            return np.asarray(output / np.where(lengths > 0, lengths, 1), dtype=np.float32)
        return output

    def nodes(self, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Return nodes from the float tensor ``name`` to ``embedding``, and their constants.

        In this form they are the same in all opsets.
        """
        make = helper.make_node
        nodes: list[onnx.NodeProto] = []
        constants: list[onnx.TensorProto] = []
        if self.pooling == "mean":
            nodes += [
                make("Transpose", [name], ["columns"], perm=[0, 2, 1]),
                make("GlobalAveragePool", ["columns"], ["means"]),
                make("Flatten", ["means"], ["pooled"], axis=1),
            ]
        elif self.pooling == "cls":
            constants = [numpy_helper.from_array(np.array(0), "first")]
            nodes += [make("Gather", [name, "first"], ["pooled"], axis=1)]
        else:
            nodes += [make("Identity", [name], ["pooled"])]
        if self.normalise:
            nodes += [make("LpNormalization", ["pooled"], ["embedding"], axis=1, p=2)]
        else:
            nodes += [make("Identity", ["pooled"], ["embedding"])]
        return nodes, constants


def wrap(
    model: onnx.ModelProto, inputs: EncoderInputs, *, reduction: Reduction, width: int
) -> onnx.ModelProto:
    """Return ``model`` from ``tokens`` int64 (N, T) to ``embedding`` float32 (N, ``width``).

    The other inputs are computed in the graph.
    """
    inner = compose.add_prefix(model, _PREFIX)
    make = helper.make_node
    before = [
        make("Cast", ["tokens"], [_PREFIX + inputs.tokens.name], to=inputs.tokens.element),
    ]
    if inputs.filled:
        before.append(make("Shape", ["tokens"], ["shape"]))
    for tensor, value in inputs.filled.items():
        filling = helper.make_tensor("value", tensor.element, [1], [value])
        before.append(make("ConstantOfShape", ["shape"], [_PREFIX + tensor.name], value=filling))
    cast = make("Cast", [inner.graph.output[0].name], ["output"], to=TensorProto.FLOAT)
    after, constants = reduction.nodes("output")
    graph = helper.make_graph(
        [*before, *inner.graph.node, cast, *after],
        "backbone",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", "T"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", width])],
        [*inner.graph.initializer, *constants],
    )
    inner.graph.CopyFrom(graph)
    return inner
