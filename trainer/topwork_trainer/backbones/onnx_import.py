"""Import of a user's ONNX file as a backbone, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from topwork.inputs.preprocess import DEEP_GREY, Interpolation, PreprocessSpec
from topwork.runtime.backend import open_session
from topwork_trainer.backbones import (
    LEAST_IMAGE_SIZE,
    MOST_IMAGE_SIZE,
    onnx_file,
    onnx_graph,
)
from topwork_trainer.backbones.imported import (
    ImportedBackbone,
    check_embeddings,
    imported,
    refusing,
)
from topwork_trainer.backbones.onnx_graph import GraphInput, Layout
from topwork_trainer.backbones.onnx_wrap import Pool, Pooling, free_batch, wrap
from topwork_trainer.backbones.parity import check_parity, structured_images
from topwork_trainer.backbones.plans import Rgb
from topwork_trainer.backbones.stamp import stamped

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's pixels from 0 to 1, which most networks were trained with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxSource:
    """An ONNX file and what is known about it; what is None is found in the graph, or assumed."""

    file: Path
    layout: Layout | None = None
    image_size: int | None = None
    value_range: Literal[1, 255] | None = None
    """Largest value of a pixel before ``mean`` and ``std`` are applied."""
    mean: Rgb | None = None
    """Per channel, for pixels up to ``value_range``, as ``std``."""
    std: Rgb | None = None
    output: str | None = None
    """Name of the tensor that is the embedding."""
    pool: Pool | None = None
    """Rows to use of an output with a row per patch."""
    interpolation: Interpolation = "bicubic"
    licence: str = "unknown"


def import_onnx(name: str, source: OnnxSource) -> ImportedBackbone:
    """Return the backbone ``name`` from an ONNX file.

    The graph is completed so that it takes uint8 pixels and any number of images, and compared with
    the original. Raises InvalidInput if the file cannot be used.
    """
    content = onnx_file.read(source.file)
    with refusing(source.file):
        return _import(name, source, content)


def _import(name: str, source: OnnxSource, content: onnx.ModelProto) -> ImportedBackbone:
    """See ``import_onnx``. Raises ValueError, Corrupt, ExportError."""
    given = onnx_graph.find_input(content, layout=source.layout, image_size=source.image_size)
    if not LEAST_IMAGE_SIZE <= given.size <= MOST_IMAGE_SIZE:
        raise ValueError(
            f"it takes images of {given.size} pixels; {LEAST_IMAGE_SIZE} to {MOST_IMAGE_SIZE} are"
            " possible"
        )
    tensor, classifier = onnx_graph.find_output(content, source.output)
    mean, std, normalised = _normalisation(source, content, given)
    bare = onnx_graph.cut(content, tensor)
    images = structured_images(given.size)
    outputs = _reference(bare, given, mean, std, images)
    pooling = Pooling(outputs.shape, source.pool)
    expected = pooling.apply(outputs)
    check_embeddings(expected, tensor, "images")
    if given.batch is not None:
        free_batch(bare, given)
    spec = PreprocessSpec(
        resize=given.size,  # the whole central square, as for Topwork's own backbones
        crop=given.size,
        interpolation=source.interpolation,
        deep_grey=DEEP_GREY,
    )
    model = stamped(
        wrap(bare, given, mean=mean, std=std, pooling=pooling).SerializeToString(), spec
    )
    try:
        session = open_session(model, output="embedding", quiet=True)
        actual = np.concatenate([session.run(part) for part in np.split(images, (1, 4))])
        check_parity(expected, actual, reference="the original graph")
    except Exception as error:  # ONNX Runtime's errors share no class
        raise ValueError(_why_not_any(given, error)) from error
    notes = (
        f"input {given.name!r}: {given.layout}, {given.size} x {given.size} pixels",
        normalised,
        f"embedding: {expected.shape[1]} values of {tensor!r}"
        + (f"; the classifier {classifier} is cut off (--output keeps it)" if classifier else ""),
    )
    return imported(
        name,
        source,
        original=bare,
        graph=model,
        session=session,
        spec=spec,
        expected=expected,
        actual=actual,
        notes=notes,
    )


def _normalisation(
    source: OnnxSource, content: onnx.ModelProto, given: GraphInput
) -> tuple[Rgb, Rgb, str]:
    """Return mean and std in pixel units (0 to 255), and a sentence about them."""
    told = source.value_range is not None or source.mean is not None or source.std is not None
    if given.takes_bytes:
        if told:
            raise ValueError("it takes uint8 pixels, so it has no --range, --mean and --std")
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "pixels: uint8, which the graph normalises"
    most = source.value_range
    if told:
        most = most or 1
        mean, std, why = source.mean or (0, 0, 0), source.std or (1, 1, 1), "as told"
    elif most := onnx_graph.find_range(content, given.name):
        mean, std, why = (0, 0, 0), (1, 1, 1), "found: the graph normalises them"
    else:
        most, mean, std = 1, IMAGENET_MEAN, IMAGENET_STD
        why = "assumed: pass --range, --mean or --std if it was trained with others"
    if not all(value > 0 for value in std):
        raise ValueError(f"--std must be positive, not {std}")
    text = f"pixels: 0 to {most}, minus {_numbers(mean)}, divided by {_numbers(std)} ({why})"
    return _in_pixel_units(mean, most), _in_pixel_units(std, most), text


def _in_pixel_units(values: Rgb, most: int) -> Rgb:
    red, green, blue = values
    return (255 * red / most, 255 * green / most, 255 * blue / most)


def _reference(
    bare: onnx.ModelProto, given: GraphInput, mean: Rgb, std: Rgb, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the output (N, ...) of the original graph, with pixels normalised here."""
    pixels = images.transpose(0, 3, 1, 2) if given.layout == "NCHW" else images
    if not given.takes_bytes:
        shape = (3, 1, 1) if given.layout == "NCHW" else (3,)
        centre, scale = (np.array(values, np.float32).reshape(shape) for values in (mean, std))
        element = onnx.helper.tensor_dtype_to_np_dtype(given.element)
        pixels = ((pixels.astype(np.float32) - centre) / scale).astype(element)
    session = open_session(bare.SerializeToString(), output=bare.graph.output[0].name, quiet=True)
    rows = []
    for pixel in pixels:
        try:
            output = session.run(np.repeat(pixel[None], given.batch or 1, axis=0))
        except Exception as error:  # ONNX Runtime's errors share no class
            raise ValueError(f"ONNX Runtime cannot run it: {error}") from error
        if output.ndim < 1 or len(output) != (given.batch or 1):
            raise ValueError(
                f"its output has the shape {onnx_graph.shape_text(output.shape)}, not a row per"
                " image"
            )
        rows.append(output[:1])
    return np.concatenate(rows)


def _why_not_any(given: GraphInput, error: Exception) -> str:
    if given.batch is not None:
        return (
            f"it has a fixed batch of {given.batch}, which cannot be changed: export it with a"
            " dynamic batch dimension"
        )
    return f"it does not embed several images like one: {error}"


def _numbers(values: Rgb) -> str:
    return " ".join(f"{value:g}" for value in values) if len({*values}) > 1 else f"{values[0]:g}"
