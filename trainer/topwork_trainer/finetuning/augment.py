"""Augmentation of training images, and preprocessing of judged ones. Imports torch."""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer.backbones import torchvision_import

MARGIN = 1.15
"""How much finer an image is decoded for training: its parts are then enlarged less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPreset:
    """The view that serving has."""

    spec: PreprocessSpec

    def __call__(self, content: bytes) -> Tensor:
        """Return the view uint8 (crop, crop, 3), RGB, of an encoded image. Raises ImageError."""
        return torch.from_numpy(preprocess(content, self.spec).copy())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPreset:
    """Views that differ each time and still show the label: a part of the image, in other light."""

    spec: PreprocessSpec
    """The one of serving."""
    mirror: bool = True
    """Whether left and right may be swapped. Not where the side has a meaning, as in X-rays."""
    scale: tuple[float, float] = (0.35, 1.0)
    """Share of the serving view's area that is kept."""
    ratio: float = 1.25
    """The most that a part's width may be of its height, or its height of its width."""
    jitter: float = 0.2
    """The most that brightness, contrast and saturation change, as a share."""

    def __call__(self, content: bytes, rng: np.random.Generator) -> Tensor:
        """Return a view uint8 (crop, crop, 3), RGB, of an encoded image. Raises ImageError.

        All chance comes from ``rng``, none from torch's generator, which threads would share.
        """
        finer = replace(
            self.spec,
            resize=round(self.spec.resize * MARGIN),
            crop=round(self.spec.crop * MARGIN),
        )
        image = torch.from_numpy(preprocess(content, finer).copy()).permute(2, 0, 1)
        v2 = _functional()
        image = v2.resized_crop(
            image,
            *_part(finer.crop, self.scale, self.ratio, rng),
            size=[self.spec.crop, self.spec.crop],
            interpolation=v2.InterpolationMode(self.spec.interpolation),
            antialias=True,
        )
        if self.mirror and rng.random() < 0.5:
            image = v2.horizontal_flip(image)
        for adjust in (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation):
            image = adjust(image, rng.uniform(1 - self.jitter, 1 + self.jitter))
        view: Tensor = image.permute(1, 2, 0)
        return view


def _part(
    side: int, share: tuple[float, float], ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random part of a square image.

    ``share`` bounds its share of the area, ``ratio`` how far it is from square.
    """
    area = side * side * rng.uniform(*share)
    shape = math.exp(rng.uniform(-math.log(ratio), math.log(ratio)))
    height = min(side, round(math.sqrt(area / shape)))
    width = min(side, round(math.sqrt(area * shape)))
    top, left = rng.integers(0, (side - height + 1, side - width + 1))
    return int(top), int(left), height, width


@functools.cache
def _functional() -> Any:
    """Return torchvision.transforms.v2.functional, which ``import torchvision`` leaves out."""
    name = torchvision_import.package().__name__
    return importlib.import_module(f"{name}.transforms.v2.functional")
