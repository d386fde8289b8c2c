"""Variant of a backbone's graph that outputs its feature maps, too.

A backbone that ends in global average pooling has them already: its embedding is their mean over
all positions. The stored graph and its digest do not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.kinds import kind_of
from topwork.inputs.preprocess import PreprocessSpec

OUTPUT = "embedding"
"""Output of a backbone; in the variant the feature maps follow the embedding in each row."""

_PLAIN = "embedding_without_maps"

_TRANSPARENT = {
    *("Cast", "DequantizeLinear", "Div", "Dropout", "Flatten", "Identity", "Mul", "QuantizeLinear"),
    *("Reshape", "Squeeze", "Transpose", "Unsqueeze"),
}
"""Operators between a pooling and the embedding; the features check that they only scale it."""


class NoMap(Exception):
    """The backbone has no feature maps whose mean is its embedding; the text says why."""


def unloadable(error: Exception) -> NoMap:
    """Return the reason if the variant of a graph cannot be loaded."""
    return NoMap(f"its graph cannot be loaded with a feature map as an output: {error}")


def check_positions(info: BackboneInfo) -> None:
    """Raise NoMap unless the inputs of a backbone are images, whose parts have positions."""
    if not info.has_graph:
        raise NoMap("the client computes the embeddings, which have no positions")
    if not isinstance(info.preprocess, PreprocessSpec):
        raise NoMap(f"only images have one, not inputs of the kind {kind_of(info.preprocess).name}")


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer normalisation of a pooled feature map."""

    scale: NDArray[np.float32]
    """(C,)"""
    bias: NDArray[np.float32]
    """(C,)"""
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPart:
    """Feature map whose mean over all positions is a part of the embedding, but for a factor."""

    name: str
    """Of the tensor in the graph."""
    rows: int
    columns: int
    channels: int
    channels_first: bool
    norm: LayerNorm | None
    """Applied to the mean."""

    @property
    def size(self) -> int:
        """Number of values for each view of an image."""
        return self.rows * self.columns * self.channels


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLayout:
    """Layout of a row of the variant's output: the embedding, then each part, view by view."""

    width: int
    """Width D of the embedding."""
    views: int
    """1, or 2 if the embedding is the mean over the image and its mirror image."""
    parts: tuple[MapPart, ...]
    """In the order of the embedding."""

    @property
    def row_width(self) -> int:
        """Number of values of a row."""
        return self.width + self.views * sum(part.size for part in self.parts)


def with_maps(model: bytes) -> tuple[bytes, MapLayout]:
    """Return the variant of a backbone's graph, with its layout. Raises NoMap."""
    proto = onnx.load_model_from_string(model)
    tail = _Tail(proto)
    parts = tuple(tail.parts(OUTPUT))
    width = sum(part.channels for part in parts)
    if width != tail.shape(OUTPUT)[-1]:
        raise NoMap(f"only {width} columns of its embedding are means over positions")
    _append(proto.graph, parts, tail.views)
    return proto.SerializeToString(), MapLayout(width=width, views=tail.views, parts=parts)


class _Tail:
    """End of a graph, read backwards from its output to the poolings."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.views = 1
        self._producers = {output: node for node in graph.node for output in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._values = {value.name: value for value in (*graph.value_info, *graph.output)}
        self._model = model

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, unknown dimensions as 0. Raises NoMap."""
        if name not in self._values:
            inferred = shape_inference.infer_shapes(self._model).graph
            self._values.update({value.name: value for value in inferred.value_info})
        if name not in self._values:
            raise NoMap("its graph does not tell the shape of its feature map")
        return tuple(dim.dim_value for dim in self._values[name].type.tensor_type.shape.dim)

    def parts(self, name: str, norm: LayerNorm | None = None) -> Iterator[MapPart]:
        """Yield the feature maps whose means form the tensor ``name``. Raises NoMap."""
        node = self._producers.get(name)
        if node is None:
            raise NoMap("its embedding is no mean over positions of the image")
        if node.op_type == "Concat":
            for part in node.input:
                yield from self.parts(part)
        elif node.op_type == "LayerNormalization":
            scale, bias = (self._constant(name) for name in (*node.input[1:3], "")[:2])
            epsilon = {a.name: a.f for a in node.attribute}.get("epsilon", 1e-5)
            yield from self.parts(node.input[0], LayerNorm(scale, bias, epsilon))
        elif node.op_type in _TRANSPARENT:
            inputs = [each for each in node.input if each not in self._constants]
            yield from self.parts(inputs[0] if inputs else "", norm)
        elif node.op_type == "GlobalAveragePool":
            yield self._part(node.input[0], channel=1, norm=norm)
        elif node.op_type == "ReduceMean":
            yield from self._mean(node, norm)
        else:
            raise NoMap(
                f"its embedding is no mean over positions of the image, but comes from the operator"
                f" {node.op_type}"
            )

    def _mean(self, node: onnx.NodeProto, norm: LayerNorm | None) -> Iterator[MapPart]:
        axes = {a.name: list(a.ints) for a in node.attribute}.get("axes")
        if axes is None and len(node.input) > 1:
            axes = [int(axis) for axis in self._constant(node.input[1]).ravel()]
        if axes == [0] and self.views == 1 and norm is None:  # the mean over views
            self.views = 2
            yield from self.parts(node.input[0])
            return
        rank = len(self.shape(node.input[0]))
        pooled = {axis % rank for axis in axes or ()}
        left = [axis for axis in range(1, rank) if axis not in pooled]
        if 0 in pooled or len(left) != 1:
            raise NoMap("its last mean is not over the positions of the image")
        yield self._part(node.input[0], channel=left[0], norm=norm)

    def _part(self, name: str, *, channel: int, norm: LayerNorm | None) -> MapPart:
        shape = self.shape(name)
        channels = shape[channel]
        positions = [length for axis, length in enumerate(shape) if axis not in {0, channel}]
        if len(positions) == 1:  # tokens, row by row
            positions = [math.isqrt(positions[0])] * 2
        if not channels or len(positions) != 2 or not all(positions):
            raise NoMap(f"its feature map has the shape {shape}")
        if math.prod(positions) * channels != math.prod(shape[1:]):
            raise NoMap(f"its {shape[1]} tokens are no square of patches")
        if channel not in {1, len(shape) - 1}:
            raise NoMap(f"its feature map has the channels in dimension {channel}")
        rows, columns = positions
        return MapPart(
            name=name,
            rows=rows,
            columns=columns,
            channels=channels,
            channels_first=channel == 1,
            norm=norm,
        )

    def _constant(self, name: str) -> NDArray[Any]:
        tensor = self._constants.get(name)
        if tensor is None:
            producer = self._producers.get(name)
            if producer is None or producer.op_type != "Constant":
                raise NoMap("the end of its graph is not constant")
            tensor = producer.attribute[0].t
        return numpy_helper.to_array(tensor)


def _append(graph: onnx.GraphProto, parts: tuple[MapPart, ...], views: int) -> None:
    """Append each part to the rows of the output, view by view."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_PLAIN if name == OUTPUT else name for name in names]

    def add(operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    columns = [_PLAIN]
    for number, part in enumerate(parts):
        prefix = f"topwork_map_{number}"
        tensor = _PLAIN if part.name == OUTPUT else part.name
        flat = add("Flatten", tensor, name=f"{prefix}_flat", axis=1)
        if views > 1:  # (views * N, size) -> (N, views * size)
            for shape, values in (
                ("split", [views, -1, part.size]),
                ("joined", [-1, views * part.size]),
            ):
                array = np.array(values, dtype=np.int64)
                graph.initializer.append(numpy_helper.from_array(array, f"{prefix}_{shape}"))
            by_view = add("Reshape", flat, f"{prefix}_split", name=f"{prefix}_views")
            by_image = add("Transpose", by_view, name=f"{prefix}_images", perm=[1, 0, 2])
            flat = add("Reshape", by_image, f"{prefix}_joined", name=f"{prefix}_rows")
        columns.append(flat)
    add("Concat", *columns, name=OUTPUT, axis=1)
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param or "N"
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, None]))
    stale = [value for value in graph.value_info if value.name == OUTPUT]
    for value in stale:
        graph.value_info.remove(value)
