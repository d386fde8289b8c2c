"""Small backbones that end in a mean over positions, and rendered flowers at known places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from support import tiny
from support.pictures import COLOURS, encode
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.inputs.image_source import ImageSource
from topwork.inputs.preprocess import PreprocessSpec
from topwork.runtime.backend import open_session
from topwork.training.embed import embed

CROP = 32
CELLS = 8
CHANNELS = 24
SPEC = PreprocessSpec(resize=CROP, crop=CROP)

Kind = Literal["relu", "signed", "int8", "tokens", "layer_norm", "two_views", "joined"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WITHOUT_MAP = ("maximum", "first", "projected", "patches")
"""Backbones whose embedding is no mean over positions."""


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name


def model(kind: str = "relu") -> bytes:  # noqa: PLR0915  # a list of the kinds
    """Return a backbone: a 1 x 1 convolution of 8 x 8 cells, then the mean over all cells."""
    graph, random = _Graph(), np.random.default_rng(3)
    pixels = "image"
    if kind == "two_views":
        axis, ends, step = (graph.constant(np.array([each])) for each in (2, -100, -1))
        mirrored = graph.add("Slice", pixels, graph.constant(np.array([-1])), ends, axis, step)
        pixels = graph.add("Concat", pixels, mirrored, axis=0)
    planes = graph.add("Transpose", pixels, perm=[0, 3, 1, 2])
    scaled = graph.add(
        "Mul", graph.add("Cast", planes, to=TensorProto.FLOAT), graph.constant(np.float32(1 / 64))
    )
    size = CROP // CELLS
    cells = graph.add("AveragePool", scaled, kernel_shape=[size, size], strides=[size, size])
    # No weight answers to grey: a background without colour is no evidence.
    weights = random.normal(size=(CHANNELS, 3))
    weights -= weights.mean(axis=1, keepdims=True)
    kernel = graph.constant(weights[:, :, None, None].astype(np.float32))
    features = graph.add("Conv", cells, kernel)
    if kind not in {"signed", "layer_norm"}:
        features = graph.add("Relu", features)
    if kind == "int8":
        scale, zero = graph.constant(np.float32(0.05)), graph.constant(np.uint8(0))
        quantised = graph.add("QuantizeLinear", features, scale, zero)
        features = graph.add("DequantizeLinear", quantised, scale, zero)
    width, last = CHANNELS, ""
    axes = graph.constant(np.array([2, 3]))
    match kind:
        case "tokens":
            shape = graph.constant(np.array([0, CHANNELS, -1]))
            tokens = graph.add("Transpose", graph.add("Reshape", features, shape), perm=[0, 2, 1])
            last = graph.add("ReduceMean", tokens, graph.constant(np.array([1])), keepdims=0)
        case "layer_norm":
            means = graph.add("Flatten", graph.add("GlobalAveragePool", features), axis=1)
            affine = random.uniform(0.5, 2, CHANNELS), random.normal(size=CHANNELS)
            last = graph.add(
                "LayerNormalization",
                means,
                *(graph.constant(values.astype(np.float32)) for values in affine),
                axis=-1,
            )
        case "two_views":
            means = graph.add("ReduceMean", features, axes, keepdims=0)
            views = graph.add("Reshape", means, graph.constant(np.array([2, -1, CHANNELS])))
            last = graph.add("ReduceMean", views, graph.constant(np.array([0])), keepdims=0)
        case "joined":  # as NAME:pooled: the means of two stages, each of length 1
            lower = graph.add("AveragePool", features, kernel_shape=[2, 2], strides=[2, 2])
            parts = [graph.add("ReduceMean", each, axes, keepdims=0) for each in (features, lower)]
            axis = graph.constant(np.array([1]))
            lengths = [graph.add("ReduceL2", part, axis, keepdims=1) for part in parts]
            units = [graph.add("Div", *pair) for pair in zip(parts, lengths, strict=True)]
            width, last = 2 * CHANNELS, graph.add("Concat", *units, axis=1)
        case "maximum":
            last = graph.add("ReduceMax", features, axes, keepdims=0)
        case "first":
            tokens = graph.add("Reshape", features, graph.constant(np.array([0, CHANNELS, -1])))
            last = graph.add("Gather", tokens, graph.constant(np.array(0)), axis=2)
        case "projected":
            means = graph.add("ReduceMean", features, axes, keepdims=0)
            shift = random.normal(size=CHANNELS).astype(np.float32)
            last = graph.add("Mul", means, graph.constant(shift))
        case "patches":
            flat = graph.add("Flatten", features, axis=1)
            width, last = CHANNELS * CELLS * CELLS, flat
        case _:
            means = graph.add("GlobalAveragePool", features)
            last = graph.add("Flatten", means, axis=1)
    graph.nodes[-1].output[0] = "embedding"
    assert last, "every kind has an output"
    sizes = helper.make_tensor_value_info
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            kind,
            [sizes("image", TensorProto.UINT8, ["N", CROP, CROP, 3])],
            [sizes("embedding", TensorProto.FLOAT, ["N", width])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


def info(content: bytes) -> BackboneInfo:
    """Return the description of one of these backbones."""
    width = onnx.load_model_from_string(content).graph.output[0].type.tensor_type.shape.dim[1]
    return replace(tiny.backbone_info(content), preprocess=SPEC, width=width.dim_value)


def flower(
    label: str, index: int, *, size: tuple[int, int] = (64, 64), exif: int = 1, side: float = 0.25
) -> tuple[bytes, tuple[float, float]]:
    """Return a grey picture with a disc in the colour of ``label``, and the disc's centre.

    The centre is in fractions of the upright picture, at different places for each index.
    """
    random = np.random.default_rng([sorted(COLOURS).index(label), index])
    width, height = size
    grey = random.integers(60, 200, (height // 4, width // 4)).astype(np.uint8)
    image = Image.fromarray(grey).resize(size, Image.Resampling.NEAREST).convert("RGB")
    radius = side * min(size) / 2
    x, y = (random.uniform(radius, length - radius) for length in size)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[label])
    centre = x / width, y / height
    if exif == 6:  # stored on its side
        image = image.transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[274] = exif
    return encode(image, exif=tags), centre


def _content(label: str, index: int) -> bytes:
    return flower(label, index)[0]


def exemplars(
    content: bytes, labels: Sequence[str] = ("amber", "blue", "crimson"), count: int = 20
) -> Exemplars:
    """Return the exemplars of ``count`` flowers of each label."""
    sources = [
        ImageSource(name=f"{label}-{index}", label=label, read=partial(_content, label, index))
        for label in labels
        for index in range(count)
    ]
    found, skipped = embed(sources, open_session(content, output="embedding"), SPEC, cores=2)
    assert found is not None
    assert not skipped
    return found


def repository(
    root: Path, kind: str = "relu", recipe: Recipe = tiny.LOGISTIC, *, name: str = "discs"
) -> Repository:
    """Return a repository with a model of discs on one of these backbones."""
    made, content = Repository(root), model(kind)
    tiny.publish(
        made, name, exemplars(content), recipe=recipe, backbone=content, info=info(content)
    )
    return made
