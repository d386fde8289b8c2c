"""Embedding run: embeds the photos of any training data, resumable at any moment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.thumbnail import SIDE
from topwork.storage.location import Location, absolute
from topwork_trainer import backbones
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.data import scan
from topwork_trainer.embedding import local_engine, ray_engine
from topwork_trainer.embedding.plan import (
    PART_PHOTOS,
    Plan,
    begin,
    listed,
    make_plan,
    put_backbone,
)
from topwork_trainer.embedding.run_files import RunFiles, open_run
from topwork_trainer.embedding.work import done_parts

EngineName = Literal["local", "ray"]


class OnPhotos(Protocol):
    """Called with the number of photos that are done in addition."""

    def __call__(self, photos: int, /) -> None:
        """Note the photos."""


class Engine(Protocol):
    """Function that embeds the missing parts of a run."""

    def __call__(
        self,
        out: RunFiles,
        plan: Plan,
        parts: Sequence[int],
        photos: Sequence[tuple[str, Photo]],
        on_photos: OnPhotos,
    ) -> int:
        """Embed the parts and return the number of photos; see ``local_engine.embed_parts``."""


ENGINES: dict[EngineName, Engine] = {
    "local": local_engine.embed_parts,
    "ray": ray_engine.embed_parts,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """The settings of ``topwork-train embed``; each is an option of the same name."""

    data: Path
    out: Location
    """Directory, or the URL of a prefix in a bucket."""
    engine: EngineName = "local"
    model: str | None = None
    """Model of ``repository`` whose backbone embeds; None: ``backbone``."""
    backbone: str = backbones.DEFAULT
    repository: Location | None = None
    """Repository of the model, or in which a backbone was added under its name."""
    classes: Sequence[str] | None = None
    preview_pixels: int = SIDE
    part_photos: int = PART_PHOTOS
    cache: Path | None = None
    """Directory of cached exports of backbones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult:
    """Result of an embedding run."""

    plan: Plan
    backbone: BackboneInfo
    embedded_now: int
    """Number of photos that this process, or its tasks, have embedded, and no other process."""


def embed_photos(config: EmbedConfig, on_begin: OnBegin) -> EmbedResult:
    """Embed all photos of the data into the parts in ``out``, except parts that are there.

    Several processes, on machines that share the files, may run this at once: each part is made by
    one. ``on_begin`` is called with the number of photos that are missing, and returns the callback
    of the progress. Raises InvalidInput if the data cannot be used, or ``out`` has another run.
    """
    data = config.data.absolute()  # for other processes
    out = open_run(absolute(config.out))
    photos = scan(data, classes=config.classes)
    with out.new_backbones() as target:
        backbone = _prepare(config, target)
    plan = begin(
        out,
        make_plan(
            photos,
            backbone,
            preview_pixels=config.preview_pixels,
            part_photos=config.part_photos,
        ),
    )
    every = listed(photos)
    missing = sorted({*range(plan.parts)} - done_parts(out, plan, range(plan.parts)))
    if isinstance(config.out, str):  # there are no locks: other processes have another order
        random.shuffle(missing)
    embedded = 0
    if missing:
        on_photos = on_begin(sum(len(plan.photos_of(part, every)) for part in missing))
        embedded = ENGINES[config.engine](out, plan, missing, every, on_photos)
    return EmbedResult(plan=plan, backbone=backbone, embedded_now=embedded)


class OnBegin(Protocol):
    """Called once, before photos are embedded."""

    def __call__(self, missing: int, /) -> OnPhotos:
        """Return the callback of the progress."""


def _prepare(config: EmbedConfig, target: Repository) -> BackboneInfo:
    """Store the backbone in ``target``. Raises InvalidInput if it does not take images."""
    source = target if config.repository is None else open_repository(config.repository)
    if config.model is not None:
        if config.repository is None:
            raise InvalidInput("--model needs --repository", field="repository")
        digest = source.manifest(config.model, source.serving(config.model)).backbone
        info = source.backbone_info(digest)
    else:
        exports = Exports(config.cache) if config.cache else None
        info = prepare_backbone(source, backbones.parse(config.backbone), exports)
    if not isinstance(info.preprocess, PreprocessSpec):
        raise InvalidInput(
            f"the backbone {info.name!r} does not take images, and only photos can be embedded",
            field="backbone",
            reason="INPUT_KIND",
        )
    return info if source is target else put_backbone(source, target, info.digest)
