"""Augmentation of training images and preprocessing of validation images. Imports torch."""

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
"""Raising it decodes training images at a higher resolution, so that crops are enlarged less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPreset:
    """Preprocessing of validation images, the same as in serving."""

    spec: PreprocessSpec

    def __call__(self, content: bytes) -> Tensor:
        """Return the view uint8 (crop, crop, 3), RGB, of an encoded image. Raises ImageError."""
        return torch.from_numpy(preprocess(content, self.spec).copy())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPreset:
    """Random augmentation of training images: crop, mirror, brightness, contrast, saturation."""

    spec: PreprocessSpec
    """Preprocess spec of serving."""
    mirror: bool = True
    """True: mirror half of the images. False if left and right differ in meaning, as in X-rays."""
    scale: tuple[float, float] = (0.35, 1.0)
    """Bounds of the crop's share of the area of the serving view."""
    ratio: float = 1.25
    """Largest ratio of the sides of a crop."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation."""

    def __call__(self, content: bytes, rng: np.random.Generator) -> Tensor:
        """Return a view uint8 (crop, crop, 3), RGB, of an encoded image. Raises ImageError.

        Draws random numbers only from ``rng``: threads share torch's generator.
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
            *_crop(finer.crop, self.scale, self.ratio, rng),
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


def _crop(
    side: int, share: tuple[float, float], ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop of a square image.

    ``share`` bounds its share of the area, ``ratio`` the ratio of its sides.
    """
    area = side * side * rng.uniform(*share)
    shape = math.exp(rng.uniform(-math.log(ratio), math.log(ratio)))
    height = min(side, round(math.sqrt(area / shape)))
    width = min(side, round(math.sqrt(area * shape)))
    top, left = rng.integers(0, (side - height + 1, side - width + 1))
    return int(top), int(left), height, width


@functools.cache
def _functional() -> Any:
    """Return torchvision.transforms.v2.functional, which ``import torchvision`` does not import."""
    name = torchvision_import.package().__name__
    return importlib.import_module(f"{name}.transforms.v2.functional")
