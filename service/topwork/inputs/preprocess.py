"""The preprocess spec: parameters of the conversion of image bytes to the backbone's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from topwork.inputs.spec import InputSpec

LARGEST_SIDE = 4096
"""Raising it allows larger backbone inputs, which take more memory: length of the short side."""

Interpolation = Literal["bilinear", "bicubic"]
DeepGrey = Literal["depth", "percentiles"]

DEEP_GREY: DeepGrey = "percentiles"
"""The mapping of new backbones; a model uses its backbone's mapping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec(InputSpec):
    """The preprocess spec: decode to upright RGB, scale the short side, crop the centre.

    The result is uint8 (crop, crop, 3), RGB. Scaling to the backbone's value range is part of the
    backbone's graph. Raises ValueError if a field is invalid.
    """

    resize: int
    """Length of the short side after scaling, in pixels."""
    crop: int
    """Side of the central square, in pixels; at most ``resize``."""
    interpolation: Interpolation = "bicubic"
    """Filter of the scaling, with antialiasing."""
    deep_grey: DeepGrey = "depth"
    """Mapping of greyscale samples of more than 8 bits to 8 bits; see ``topwork.inputs.grey``.

    The default is for specs stored before other mappings existed.
    """

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize <= LARGEST_SIDE:
            raise ValueError(
                f"crop {self.crop} must be between 1 and resize {self.resize}, and resize at most "
                f"{LARGEST_SIDE}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"unknown interpolation {self.interpolation!r}")
        if self.deep_grey not in get_args(DeepGrey):
            raise ValueError(f"unknown mapping of deep grey {self.deep_grey!r}")
