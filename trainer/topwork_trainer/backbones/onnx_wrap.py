"""Completion of a user's ONNX graph: any number of images, uint8 pixels in, one embedding out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from topwork_trainer.backbones.onnx_graph import GraphInput, constants_of, shape_text
from topwork_trainer.backbones.plans import Rgb

Pool = Literal["cls", "mean", "both"]

_PREFIX = "model/"
"""Prefix of all names of the user's graph, so that they differ from ours."""


def free_batch(model: onnx.ModelProto, given: GraphInput) -> None:
    """Let a graph with a fixed number of images take any, as far as constant shapes hinder it."""
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    constants = constants_of(graph)
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = constants[node.input[1]].copy()
        if shape.size and shape[0] == given.batch:
            shape[0] = 0 if -1 in shape[1:] else -1  # 0: as many as in the input
            graph.initializer.append(numpy_helper.from_array(shape, f"free_batch_{number}"))
            node.input[1] = f"free_batch_{number}"


@dataclass(frozen=True, slots=True)
class Pooling:
    """Reduction of a graph's output to one row per image; ``shape`` is that of its output."""

    shape: tuple[int, ...]
    pool: Pool | None
    """For rows per patch (N, T, C): those to use."""

    def __post_init__(self) -> None:
        if len(self.shape) not in {2, 3, 4}:
            raise ValueError(
                f"its output has the shape {shape_text(self.shape)}, which is no embedding"
            )
        if len(self.shape) == 3 and self.pool is None:
            raise ValueError(
                f"its output {shape_text(self.shape)} has a row per patch: pass --pool cls, mean"
                " or both"
            )
        if len(self.shape) != 3 and self.pool is not None:
            raise ValueError(
                f"its output {shape_text(self.shape)} has no rows per patch for --pool"
            )
        if self.pool in {"cls", "both"} and not self.prefix:
            raise ValueError(f"its {self.shape[1]} rows are all patches, so --pool must be mean")

    @property
    def prefix(self) -> int:
        """Number of rows before the patches, such as CLS, which form a square."""
        rows = self.shape[1]
        squares = (n for n in range(min(17, rows)) if math.isqrt(rows - n) ** 2 == rows - n)
        return next(squares, 1)

    @property
    def channels_last(self) -> bool:
        """True if a feature map is (N, H, W, C)."""
        return self.shape[1] == self.shape[2] != self.shape[3]

    def apply(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings (N, D); the reference of ``nodes``."""
        if len(self.shape) == 2:
            return output
        if len(self.shape) == 4:
            return np.asarray(output.mean(axis=(1, 2) if self.channels_last else (2, 3)))
        parts = {"cls": output[:, 0], "mean": output[:, self.prefix :].mean(axis=1)}
        return parts[self.pool] if self.pool in parts else np.concatenate([*parts.values()], axis=1)

    def nodes(self, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Return nodes from the float tensor ``name`` to ``embedding``, and their constants."""
        make = helper.make_node
        if len(self.shape) == 2:
            return [make("Identity", [name], ["embedding"])], []
        if len(self.shape) == 4:
            nodes = [
                make("GlobalAveragePool", ["planes" if self.channels_last else name], ["means"]),
                make("Flatten", ["means"], ["embedding"], axis=1),
            ]
            if self.channels_last:
                nodes.insert(0, make("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
            return nodes, []
        patches = np.arange(self.prefix, self.shape[1])
        constants = [
            numpy_helper.from_array(np.array(0), "first"),
            numpy_helper.from_array(patches, "patches"),
        ]
        cls = make("Gather", [name, "first"], ["cls"], axis=1)
        mean = [  # in this form it is the same in all opsets
            make("Gather", [name, "patches"], ["rows"], axis=1),
            make("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
            make("GlobalAveragePool", ["columns"], ["means"]),
            make("Flatten", ["means"], ["mean"], axis=1),
        ]
        if self.pool == "both":
            return [cls, *mean, make("Concat", ["cls", "mean"], ["embedding"], axis=1)], constants
        last = (cls if self.pool == "cls" else mean[-1]).output
        last[0] = "embedding"
        return ([cls], constants[:1]) if self.pool == "cls" else (mean, constants[1:])


def wrap(
    model: onnx.ModelProto, given: GraphInput, *, mean: Rgb, std: Rgb, pooling: Pooling
) -> onnx.ModelProto:
    """Return ``model`` from ``image`` uint8 (N, size, size, 3) to ``embedding`` float32 (N, D).

    ``mean`` and ``std`` are per channel, in pixel units (0 to 255).
    """
    inner = compose.add_prefix(model, _PREFIX)
    make, name = helper.make_node, "image"
    before: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def then(operator: str, *inputs: str, **attributes: Any) -> None:
        nonlocal name
        output = f"pixels_{len(before)}"
        before.append(make(operator, [name, *inputs], [output], **attributes))
        name = output

    if given.layout == "NCHW":  # bytes are cheaper to transpose
        then("Transpose", perm=[0, 3, 1, 2])
    if not given.takes_bytes:
        then("Cast", to=TensorProto.FLOAT)
        shape = (3, 1, 1) if given.layout == "NCHW" else (3,)
        for operator, values, neutral in (("Sub", mean, 0), ("Div", std, 1)):
            if any(value != neutral for value in values):
                array = np.array(values, dtype=np.float32).reshape(shape)
                constants.append(numpy_helper.from_array(array, operator.lower()))
                then(operator, operator.lower())
        if given.element != TensorProto.FLOAT:
            then("Cast", to=given.element)
    before.append(make("Identity", [name], [inner.graph.input[0].name]))
    cast = make("Cast", [inner.graph.output[0].name], ["output"], to=TensorProto.FLOAT)
    after, more = pooling.nodes("output")
    side = given.size
    width = int(pooling.apply(np.zeros(pooling.shape, np.float32)).shape[1])
    graph = helper.make_graph(
        [*before, *inner.graph.node, cast, *after],
        "backbone",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", width])],
        [*inner.graph.initializer, *constants, *more],
    )
    inner.graph.CopyFrom(graph)
    return inner
