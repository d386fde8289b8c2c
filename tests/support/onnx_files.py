"""ONNX files as users have them: a small classifier in many forms, and damaged ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 32
WIDTH = 8
CLASSES = 5

_RNG = np.random.default_rng(0)
KERNELS = _RNG.normal(0, 0.3, (WIDTH, 3, 3, 3)).astype(np.float32)
CLASSIFIER = _RNG.normal(0, 1, (WIDTH, CLASSES)).astype(np.float32)

Dims = Sequence[int | str]


def tensor(name: str, values: Any) -> onnx.TensorProto:
    """Return weights."""
    return numpy_helper.from_array(np.asarray(values), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    shape: Dims = ("N", 3, SIZE, SIZE),
    element: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model with the input ``x``."""
    graph = helper.make_graph(
        nodes,
        "it",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def features(source: str = "x") -> list[onnx.NodeProto]:
    """Return nodes from images to a feature map ``map``."""
    return [
        helper.make_node(
            "Conv", [source, "kernels"], ["conv"], kernel_shape=[3, 3], strides=[2, 2]
        ),
        helper.make_node("Relu", ["conv"], ["map"]),
    ]


def pooled(source: str = "x") -> list[onnx.NodeProto]:
    """Return nodes from images to an embedding ``e`` of 8 values."""
    return [
        *features(source),
        helper.make_node("GlobalAveragePool", ["map"], ["means"]),
        helper.make_node("Flatten", ["means"], ["e"]),
    ]


def classifier(**options: Any) -> onnx.ModelProto:
    """Return a classifier with softmax whose embedding is ``e``."""
    nodes = [
        *pooled(),
        helper.make_node("MatMul", ["e", "classifier"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"]),
    ]
    weights = [*kernels(), tensor("classifier", CLASSIFIER), tensor("bias", np.ones(CLASSES, "f"))]
    return model(nodes, weights, **options)


def kernels() -> list[onnx.TensorProto]:
    """Return the weights of ``features``."""
    return [tensor("kernels", KERNELS)]


def save(content: onnx.ModelProto, file: Path) -> Path:
    """Write a model to ``file`` and return that."""
    file.write_bytes(content.SerializeToString())
    return file


def with_data_in(
    content: onnx.ModelProto, place: str, *, offset: int = 0, length: int | None = None
) -> onnx.ModelProto:
    """Return a model whose first weights are external data in the file ``place``."""
    result = onnx.ModelProto()
    result.CopyFrom(content)
    weights = result.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entries = {"location": place, "offset": str(offset)}
    if length is not None:
        entries["length"] = str(length)
    for key, value in entries.items():
        weights.external_data.add(key=key, value=value)
    return result


def reference(images: NDArray[np.uint8], mean: ArrayLike, std: ArrayLike) -> NDArray[np.float64]:
    """Return the embeddings (N, 8) of images (N, 32, 32, 3), computed with NumPy.

    ``mean`` and ``std`` are in pixel units.
    """
    pixels = ((images.astype(np.float64) - np.asarray(mean)) / np.asarray(std)).transpose(
        0, 3, 1, 2
    )
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    maps = np.einsum("nchwij,ocij->nohw", windows, KERNELS.astype(np.float64))
    means: NDArray[np.float64] = np.maximum(maps, 0).mean(axis=(2, 3))
    return means
