"""Input, pixel range and output of a user's ONNX graph, and the graph without its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from topwork_trainer.backbones.onnx_file import nodes_of

Layout = Literal["NCHW", "NHWC"]

_ELEMENTS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8}

# Operators between classifier and output. Only the first input of a Reshape is data.
_AFTER_CLASSIFIER = {
    *("Add", "Cast", "Dropout", "Flatten", "Identity", "LogSoftmax", "Reshape"),
    *("DequantizeLinear", "QuantizeLinear", "Sigmoid", "Softmax", "Squeeze"),
}
_OF_CONSTANTS = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInput:
    """The images that a graph takes."""

    name: str
    element: int
    """Type of the elements, a value of TensorProto.DataType."""
    layout: Layout
    size: int
    """Side of the images in pixels."""
    batch: int | None
    """The only number of images that the graph takes; None: any number."""

    @property
    def takes_bytes(self) -> bool:
        """True if the graph takes uint8 pixels, and so normalises them itself."""
        return self.element == TensorProto.UINT8


def find_input(
    model: onnx.ModelProto, *, layout: Layout | None, image_size: int | None
) -> GraphInput:
    """Return the input of a graph. Raises ValueError if it takes no RGB images of a known size."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs, {_names(inputs)}; it must have one")
    (value,) = inputs
    kind = value.type.tensor_type
    if kind.elem_type not in _ELEMENTS:
        name = TensorProto.DataType.Name(kind.elem_type).lower()
        raise ValueError(f"its input {value.name!r} is {name}; it must be float or uint8")
    dims = [dim.dim_value or None for dim in kind.shape.dim]
    if len(dims) != 4:
        hint = "; pass --audio-rate if it takes waveforms" * (len(dims) == 2)
        raise ValueError(f"its input {value.name!r} has {len(dims)} dimensions, not four{hint}")
    places = {"NCHW": 1, "NHWC": 3}
    if layout is None:
        fitting: list[Layout] = [each for each in ("NCHW", "NHWC") if dims[places[each]] == 3]
        if len(fitting) != 1:
            raise ValueError(
                f"its input {value.name!r} has the shape {shape_text(dims)}: pass --layout if it"
                " takes three channels"
            )
        (layout,) = fitting
    place = places[layout]
    if dims[place] not in {None, 3}:
        raise ValueError(f"its input {value.name!r} has {dims[place]} channels; it must have three")
    height, width = (dims[2], dims[3]) if layout == "NCHW" else (dims[1], dims[2])
    if height != width:
        raise ValueError(f"it takes images of {height} x {width}; they must be square")
    if height is None and image_size is None:
        raise ValueError("it takes images of any size: pass --image-size, as it was trained with")
    if image_size not in {None, height} and height is not None:
        raise ValueError(f"it takes images of {height} pixels, not of {image_size}")
    return GraphInput(
        name=value.name,
        element=kind.elem_type,
        layout=layout,
        size=height or image_size or 0,
        batch=dims[0],
    )


def find_range(model: onnx.ModelProto, name: str) -> Literal[1, 255] | None:
    """Return the largest pixel value that a graph expects; None if it does not normalise pixels.

    Follows the input ``name`` through x * scale + shift, as a graph with its own normalisation has.
    """
    constants = constants_of(model.graph)
    scale, shift = 1.0, 0.0
    found = False
    while True:
        users = [node for node in model.graph.node if name in node.input]
        if len(users) != 1:
            break
        (node,) = users
        if node.op_type in {"Sub", "Add", "Mul", "Div"}:
            other = next((constants[i] for i in node.input if i in constants), None)
            if other is None or other.size not in {1, 3}:
                break
            value = float(other.mean())
            if node.op_type in {"Sub", "Add"}:
                shift += value if node.op_type == "Add" else -value
            else:
                factor = value if node.op_type == "Mul" else 1 / value if value else 0.0
                scale, shift = scale * factor, shift * factor
            found = True
        elif node.op_type not in {"Cast", "Identity", "Transpose"}:
            break
        name = node.output[0]
    if not found or scale == 0:
        return None
    # A mean above 2 is one of pixels up to 255; so is a factor that makes pixels up to 1 tiny.
    return 255 if abs(shift / scale) > 2 or abs(scale) < 0.3 else 1


def find_output(model: onnx.ModelProto, wanted: str | None) -> tuple[str, str]:
    """Return the tensor to use as embedding, and the classifier that it leaves out, if any.

    That is ``wanted``, or else the input of the last layer with weights, if nothing but a softmax
    and the like follows it, or else the output. Raises ValueError.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    if wanted is not None:
        if wanted not in producers:
            raise ValueError(
                f"it has no tensor {wanted!r}; its outputs are {_names(graph.output)}, and the last"
                f" tensors are {', '.join(name for n in graph.node[-8:] for name in n.output)}"
            )
        return wanted, ""
    if len(graph.output) != 1:
        raise ValueError(
            f"it has {len(graph.output)} outputs, {_names(graph.output)}: choose one with --output"
        )
    constants = constants_of(graph)
    name = graph.output[0].name
    while node := producers.get(name):
        data = [each for each in node.input if each and each not in constants]
        if _is_linear(node) and len(data) == 1:
            return data[0], f"{node.op_type} {node.name or node.output[0]!r}"
        if node.op_type not in _AFTER_CLASSIFIER or (len(data) != 1 and node.op_type != "Reshape"):
            break
        name = data[0]
    return graph.output[0].name, ""


def cut(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """Return the part of a graph that computes the tensor ``output``, its only output."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input)
            for attribute in node.attribute:
                for subgraph in (attribute.g, *attribute.graphs):  # they read tensors from outside
                    needed |= {value.name for value in subgraph.output}
                    needed |= {name for inner in nodes_of(subgraph) for name in inner.input}
    nodes.reverse()
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    outputs = [onnx.ValueInfoProto(name=output)]  # ONNX Runtime infers its type
    result.graph.CopyFrom(helper.make_graph(nodes, "backbone", inputs, outputs, weights))
    result.ir_version = max(result.ir_version, 4)  # from which weights need not be inputs
    return result


def constants_of(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    """Return the values of all weights and constants; those computed from them are empty."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            array = np.empty(0) if value is None else numpy_helper.to_array(value)
            found[node.output[0]] = array
        elif node.op_type in _OF_CONSTANTS and all(name in found for name in node.input if name):
            found[node.output[0]] = np.empty(0)
    return found


def shape_text(dims: Sequence[int | None]) -> str:
    """Return a shape for messages."""
    return "(" + ", ".join(str(dim or "?") for dim in dims) + ")"


def _is_linear(node: onnx.NodeProto) -> bool:
    """Return True for a matrix product and for a convolution of single pixels."""
    if node.op_type == "Conv":
        kernel = next((a.ints for a in node.attribute if a.name == "kernel_shape"), [0])
        return all(side == 1 for side in kernel)
    return node.op_type in {"Gemm", "MatMul"}


def _names(values: Sequence[onnx.ValueInfoProto]) -> str:
    return ", ".join(repr(value.name) for value in values)
