"""The one place that imports torchvision: its classification models, with types. Imports torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from topwork.inputs.preprocess import DEEP_GREY, PreprocessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """The weights that torchvision publishes for a model, and how it wants its images."""

    url: str
    licence: str
    mean: tuple[float, float, float]
    """In pixel units, 0 to 255, as is ``std``."""
    std: tuple[float, float, float]
    spec: PreprocessSpec


def names() -> list[str]:
    """Return the names of all classification models."""
    models = package().models
    return list(models.list_models(module=models))


def published(name: str) -> PublishedWeights:
    """Return the weights of the model ``name`` that suit a frozen backbone best."""
    weights = package().models.get_model_weights(name).__members__
    choice = next(weights[key] for key in _PREFERRED if key in weights)
    view = choice.transforms()
    return PublishedWeights(
        url=choice.url,
        licence=choice.meta.get("license", "BSD-3-Clause"),
        mean=tuple(255 * value for value in view.mean),
        std=tuple(255 * value for value in view.std),
        spec=PreprocessSpec(
            resize=view.resize_size[0],
            crop=view.crop_size[0],
            interpolation=view.interpolation.value,
            deep_grey=DEEP_GREY,
        ),
    )


# Weights trained with label smoothing (V2) are worse frozen features: torchvision #8382.
_PREFERRED = ("IMAGENET1K_V1", "IMAGENET1K_SWAG_LINEAR_V1", "DEFAULT")


def build(name: str) -> nn.Module:
    """Return the model ``name`` with random weights, for inference with its published ones."""
    module: nn.Module = package().models.get_model(name, **_OPTIONS.get(name, {}))
    return module


# What their published weights need, less the auxiliary classifiers, which only serve training.
_INCEPTION = {"transform_input": True, "aux_logits": False, "init_weights": False}
_OPTIONS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


@functools.cache
def package() -> ModuleType:
    """Return ``torchvision``, also where its compiled operators cannot be loaded.

    PyPI's torchvision is a CUDA build. Beside CPU-only torch its compiled half does not load, and
    its import fails on ``operator torchvision::nms does not exist``, which no classifier needs.
    """
    try:
        import torchvision  # type: ignore[import-untyped] # it ships no types
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_operators()
        import torchvision
    assert isinstance(torchvision, ModuleType)
    return torchvision


@functools.cache
def _declare_operators() -> torch.library.Library:
    """Declare the operators that the import names, for as long as the cache keeps the Library."""
    library = torch.library.Library(  # type: ignore[no-untyped-call] # torch leaves it untyped
        "torchvision", "FRAGMENT"
    )
    for name in ("nms", "qnms"):
        library.define(  # type: ignore[no-untyped-call] # as above
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return library
