"""Typed access to torchvision's classification models; the only import of torchvision."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from topwork.inputs.preprocess import DEEP_GREY, PreprocessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """Weights that torchvision publishes for a model, with its normalisation and preprocessing."""

    url: str
    licence: str
    mean: tuple[float, float, float]
    """Per channel, in pixel units (0 to 255), as ``std``."""
    std: tuple[float, float, float]
    spec: PreprocessSpec


def names() -> list[str]:
    """Return the names of all classification models."""
    models = package().models
    return list(models.list_models(module=models))


def published(name: str) -> PublishedWeights:
    """Return the published weights of the model ``name`` that are best for a frozen backbone."""
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


# Weights trained with label smoothing (V2) give worse frozen features: torchvision #8382.
_PREFERRED = ("IMAGENET1K_V1", "IMAGENET1K_SWAG_LINEAR_V1", "DEFAULT")


def build(name: str) -> nn.Module:
    """Return the model ``name`` with random weights, ready for its published weights."""
    module: nn.Module = package().models.get_model(name, **_OPTIONS.get(name, {}))
    return module


# The options of the published weights, without the auxiliary classifiers for training.
_INCEPTION = {"transform_input": True, "aux_logits": False, "init_weights": False}
_OPTIONS = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def package() -> ModuleType:
    """Import ``torchvision``, even if its compiled operators cannot be loaded.

    PyPI's torchvision is a CUDA build. With CPU-only torch its compiled operators do not load, and
    the import fails with ``operator torchvision::nms does not exist``. No classifier needs them.
    """
    with _IMPORT:  # another thread would see the package of an import that fails
        return _package()


_IMPORT = threading.Lock()


@functools.cache
def _package() -> ModuleType:
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
    """Declare the missing operators; the cache keeps the Library, and so the operators, alive."""
    library = torch.library.Library(  # type: ignore[no-untyped-call] # torch leaves it untyped
        "torchvision", "FRAGMENT"
    )
    for name in ("nms", "qnms"):
        library.define(  # type: ignore[no-untyped-call] # as above
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return library
