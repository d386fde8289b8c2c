"""The preprocess spec: the data that says how an image's bytes become the backbone's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

LARGEST = 4096
"""Pixels that a short side may be scaled to: what a backbone's input may cost in memory."""

Interpolation = Literal["bilinear", "bicubic"]
DeepGrey = Literal["depth", "percentiles"]

DEEP_GREY: DeepGrey = "percentiles"
"""The mapping for new backbones. A model keeps the one of its backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """The preprocess spec: decode to upright RGB, scale the short side, crop the centre.

    The result is uint8 (crop, crop, 3), RGB. Scaling to the backbone's value range is no part of
    it: that stands in the backbone's graph. Raises ValueError when the numbers make no sense.
    """

    resize: int
    """Length in pixels that the short side is scaled to."""
    crop: int
    """Side in pixels of the central square that is kept; at most ``resize``."""
    interpolation: Interpolation = "bicubic"
    """Filter of the scaling, with antialiasing."""
    deep_grey: DeepGrey = "depth"
    """How greyscale samples of more than 8 bits become 8 bits; see ``topwork.inputs.grey``.

    The default is for stored specs without it, of a time when there was only ``depth``.
    """

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize <= LARGEST:
            raise ValueError(
                f"crop {self.crop} must lie between 1 and resize {self.resize}, and that must be "
                f"at most {LARGEST}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"unknown interpolation {self.interpolation!r}")
        if self.deep_grey not in get_args(DeepGrey):
            raise ValueError(f"unknown mapping of deep grey {self.deep_grey!r}")
