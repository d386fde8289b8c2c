"""Catalogue of backbones, and loading of a backbone with its weights. Only ``load`` needs torch."""

from __future__ import annotations

import hashlib
import re
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import InvalidInput
from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer.backbones import plans, weights
from topwork_trainer.backbones.plans import Rgb

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "efficientnet_lite0"
POOLED = ":pooled"
"""Suffix of the name of a backbone whose embedding contains the means of its lower stages."""
LEAST_IMAGE_SIZE, MOST_IMAGE_SIZE = 32, 1024
"""Bounds of the input's side in pixels; a backbone may have narrower ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneChoice:
    """Selection of a backbone, its weights and input. Raises InvalidInput for invalid values."""

    name: str
    """One of ``names``, or several joined by ``+``: their embeddings are concatenated.

    Each may end in ``POOLED``.
    """
    weights: Path | None = None
    """File of a state dict to use instead of the published weights; only for a single backbone."""
    image_size: int | None = None
    """Side of the input in pixels; None: the backbone's own, or the largest of joined backbones."""
    views: int = 1
    """1: the image; 2: the mean of the embeddings of image and mirror image, at twice the cost."""

    def __post_init__(self) -> None:
        size = self.image_size
        if size is not None and not LEAST_IMAGE_SIZE <= size <= MOST_IMAGE_SIZE:
            raise InvalidInput(
                f"image size {size} must be between {LEAST_IMAGE_SIZE} and {MOST_IMAGE_SIZE}",
                field="image_size",
            )
        if self.views not in {1, 2}:
            raise InvalidInput(f"views must be 1 or 2, not {self.views}", field="views")
        if len(set(self._networks)) < len(self.parts):
            raise InvalidInput(f"{self.name!r} joins a backbone with itself", field="backbone")
        if self.weights is not None and len(self.parts) > 1:
            raise InvalidInput(
                f"one weights file cannot be used for {len(self.parts)} backbones ({self.name})",
                field="weights",
            )

    def __str__(self) -> str:
        """Return the notation that ``parse`` reads, such as ``efficientnet_lite0@288x2``."""
        views = f"x{self.views}" if self.views > 1 else ""
        variant = f"{self.image_size or ''}{views}"
        return f"{self.name}@{variant}" if variant else self.name

    @property
    def parts(self) -> list[str]:
        """The names of the backbones that are joined."""
        return self.name.split("+")

    @property
    def _networks(self) -> list[str]:
        return [name.removesuffix(POOLED) for name in self.parts]

    @property
    def pins_weights(self) -> bool:
        """True if the identity contains the sha256 of the weights, not only their source."""
        return self.weights is not None or all(name in plans.LITES for name in self._networks)

    def identity(self) -> str:
        """Return a key of the export: choices with equal identities have the same export.

        Needs neither torch nor the network, so that a fit can look for a stored export first. The
        name is not checked. Raises InvalidInput if ``weights`` cannot be read.
        """
        origins = "+".join(
            f"{name}:{self._origin(network)}"
            for name, network in zip(self.parts, self._networks, strict=True)
        )
        size = "" if self.image_size in {None, self._own_size()} else f":{self.image_size}"
        views = "" if self.views == 1 else f":x{self.views}"
        return f"{origins}:{_RECIPE}{size}{views}"

    def _origin(self, name: str) -> str:
        files = [self.weights] if self.weights else []
        if folder := plans.folder(name):  # whose files may change, unlike published weights
            files += weights.in_folder(folder)
        if files:
            return "+".join(map(weights.sha256, files))
        if name in plans.LITES:
            return plans.LITES[name].sha256
        publishers = {plans.TIMM: "timm", plans.TOWER: "hf"}
        return next((publishers[p] for p in publishers if name.startswith(p)), "torchvision")

    def _own_size(self) -> int | None:
        """Return the backbone's own input size, or None if only torch knows it."""
        if all(name in plans.LITES for name in self._networks):
            return max(plans.LITES[name].crop for name in self._networks)
        return None


def parse(text: str) -> BackboneChoice:
    """Parse the notation ``NAME[+NAME...][@[SIZE][xVIEWS]]``. Raises InvalidInput.

    A NAME may end in ``POOLED``.
    """
    match = _NOTATION.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a backbone: write NAME, NAME@SIZE, NAME@SIZExVIEWS or NAME@xVIEWS;"
            f" NAME+NAME joins two, NAME{POOLED} adds lower stages",
            field="backbone",
        )
    name, size, views = match.groups()
    return BackboneChoice(name=name, image_size=int(size) if size else None, views=int(views or 1))


_NOTATION = re.compile(r"([^@+\s]+(?:\+[^@+\s]+)*)(?:@(?!$)([0-9]{1,9})?(?:x([0-9]{1,9}))?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBackbone:
    """A backbone in torch: on the CPU, in eval mode, without its classifier."""

    name: str
    identity: str
    """The value of ``BackboneChoice.identity``."""
    module: nn.Module
    """Maps float32 (N, 3, crop, crop), RGB, ``(pixel - mean) / std``, to float32 (N, width)."""
    mean: Rgb
    """Per channel, in pixel units (0 to 255), as ``std``."""
    std: Rgb
    spec: PreprocessSpec
    views: int = 1
    """Views per image in the export, see ``BackboneChoice``; ``module`` takes one at a time."""
    width: int
    licence: str
    """Licence of the weights."""
    source: str
    """Origin of the weights: a package, a URL, or the name of a local file."""
    weights_sha256: str


def names() -> list[str]:
    """Return Topwork's names, then torchvision's. ``load`` accepts others, too. Imports torch."""
    return plans.names()


def available() -> list[str]:
    """Return the names whose weights are on this machine: packaged, or in a cache of downloads."""
    from topwork_trainer.backbones import timm_import, torchvision_import

    downloaded = [
        name
        for name in torchvision_import.names()
        if weights.cached(torchvision_import.published(name).url).exists()
    ]
    return [*plans.LITES, *downloaded, *timm_import.downloaded()]


def load(choice: BackboneChoice) -> TorchBackbone:
    """Return a backbone with its published weights, or with those in ``choice.weights``.

    ``choice.weights`` is a state dict written by ``torch.save``; its classifier is ignored. Raises
    InvalidInput if the name is unknown or the backbone does not accept the image size or the file,
    NotFound if the published weights are not available, Corrupt if a package has unknown weights.
    """
    parts = [_load_part(name, choice.weights) for name in choice.parts]
    own = max(part.spec.crop for part in parts)
    size = choice.image_size or own
    for part in parts:
        _check_size(part, size)
    backbone = parts[0] if len(parts) == 1 else _join(parts)
    return replace(
        backbone,
        name=choice.name,
        identity=replace(choice, image_size=None if size == own else size).identity(),
        spec=_scaled(backbone.spec, size),
        views=choice.views,
    )


_RECIPE = 1
"""Raise it when the same weights give another export (spec, graph or cut): exports are redone."""


def _load_part(name: str, file: Path | None) -> TorchBackbone:
    """Return the backbone ``name`` at its own image size."""
    import torch

    plan = plans.plan(name.removesuffix(POOLED))
    source = file or plan.fetch()
    digest = weights.sha256(source)
    weights.load(plan.module, source, name=name, unused=plan.unused, convert=plan.convert)
    module = plan.module.eval()
    if name.endswith(POOLED):
        module = _pooled(module, plan.spec.crop)
    with torch.inference_mode():
        width = module(torch.zeros(2, 3, plan.spec.crop, plan.spec.crop)).shape[1]
    return TorchBackbone(
        name=name,
        identity=BackboneChoice(name=name, weights=file).identity(),
        module=module,
        mean=plan.mean,
        std=plan.std,
        spec=plan.spec,
        width=width,
        licence="unknown" if file else plan.licence,
        source=source.name if file else plan.source,
        weights_sha256=digest,
    )


def _pooled(module: nn.Module, crop: int) -> nn.Module:
    from topwork_trainer.backbones.pooled import Pooled
    from topwork_trainer.backbones.stages import stages

    *above, _ = stages(module)  # the lowest stage takes the image
    firsts = [stage.first_module for stage in reversed(above)]
    return Pooled(module, [first for first in firsts if first], crop=crop).eval()


def _join(parts: list[TorchBackbone]) -> TorchBackbone:
    """Return several backbones as one, with the scaling filter and margin of the first."""
    from topwork_trainer.backbones.joined import Joined

    digests = "+".join(part.weights_sha256 for part in parts)
    return replace(
        parts[0],
        module=Joined([(part.module, part.mean, part.std) for part in parts]).eval(),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        width=sum(part.width for part in parts),
        licence=" AND ".join(sorted({part.licence for part in parts})),
        source=", ".join(part.source for part in parts),
        weights_sha256=hashlib.sha256(digests.encode()).hexdigest(),
    )


def _check_size(part: TorchBackbone, size: int) -> None:
    """Raise InvalidInput if the backbone does not accept images of that size."""
    import torch

    if size == part.spec.crop:
        return  # _load_part has run it at this size
    try:
        with torch.inference_mode():
            part.module(torch.zeros(1, 3, size, size))
    except Exception as error:  # models raise assertions, shape errors and more
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise InvalidInput(
            f"{part.name} does not accept images of {size} x {size} pixels; its own size is"
            f" {part.spec.crop} ({reason})",
            field="image_size",
        ) from error


def _scaled(spec: PreprocessSpec, crop: int) -> PreprocessSpec:
    """Return ``spec`` for another input size, with the margin in proportion."""
    return replace(spec, resize=round(spec.resize * crop / spec.crop), crop=crop)
