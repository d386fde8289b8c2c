"""Preprocess spec and normalisation of an image processor of transformers."""

from __future__ import annotations

from typing import Any

from topwork.errors import InvalidInput
from topwork.inputs.preprocess import DEEP_GREY, Interpolation, PreprocessSpec
from topwork_trainer.backbones.plans import Rgb

_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow's filters."""

_CONVNEXT_SIDE = 384
"""Size below which ConvNeXt's processor leaves a margin, by ``crop_pct``."""


def preprocess_spec(processor: Any, name: str) -> PreprocessSpec:
    """Return the spec of a processor. Raises InvalidInput if there is none that is alike.

    A processor that stretches an image to a square is replaced with the central square; both are
    the same for square images. Other filters than bilinear are replaced with bicubic.
    """
    size = _get(processor, "size")
    if not _get(processor, "do_resize") or size is None:
        raise _unusable(name, "it does not scale images to one size")
    resize = _get(size, "shortest_edge") or _square(size, name, "size")
    if (margin := _get(processor, "crop_pct")) and resize < _CONVNEXT_SIDE:
        resize, crop = int(resize / margin), resize
    elif _get(processor, "do_center_crop"):
        crop = _square(_get(processor, "crop_size"), name, "crop_size")
    else:
        crop = resize
    try:
        return PreprocessSpec(
            resize=resize,
            crop=crop,
            interpolation=_FILTERS.get(int(_get(processor, "resample") or 0), "bicubic"),
            deep_grey=DEEP_GREY,
        )
    except ValueError as error:
        raise _unusable(name, str(error)) from error


def normalisation(processor: Any, name: str) -> tuple[Rgb, Rgb]:
    """Return mean and std per channel, in pixel units (0 to 255). Raises InvalidInput."""
    if _get(processor, "rescale_offset"):
        raise _unusable(name, "it shifts pixels when it scales them (rescale_offset)")
    factor = _get(processor, "rescale_factor") if _get(processor, "do_rescale") else 1
    if not factor:
        raise _unusable(name, "it has no rescale_factor")
    mean, std = (0.0,), (1.0,)
    if _get(processor, "do_normalize"):
        mean, std = (tuple(_get(processor, key) or ()) for key in ("image_mean", "image_std"))
    if not (len(mean) == len(std) in {1, 3} and all(value > 0 for value in std)):
        raise _unusable(name, f"it normalises with mean {mean} and std {std}, not three channels")
    return _rgb(mean, factor), _rgb(std, factor)


def _rgb(values: tuple[float, ...], factor: float) -> Rgb:
    red, green, blue = values if len(values) == 3 else values * 3
    return (red / factor, green / factor, blue / factor)


def _square(size: Any, name: str, key: str) -> int:
    height, width = (_get(size, side) for side in ("height", "width"))
    if not height or height != width:
        raise _unusable(name, f"its {key} is {height} x {width}, not a square")
    return int(height)


def _get(of: Any, key: str) -> Any:
    return getattr(of, key, None)


def _unusable(name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{name} cannot be used: its preprocessor_config.json is unsuitable: {why}",
        field="backbone",
    )
