"""Embed step of a change: its uploads become a shard of exemplars; duplicates are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import structlog

from topwork.bundle.documents import document
from topwork.bundle.draft import Current
from topwork.bundle.exemplars import Exemplars, split
from topwork.bundle.store import Repository
from topwork.changes.jobs import Conflict, Job, SkippedUpload
from topwork.changes.kinds import KINDS, min_images
from topwork.errors import NotReady
from topwork.inputs.image_source import ImageSource
from topwork.learning.conflicts import KnownExemplars, find_conflicts
from topwork.limits import InputLimits
from topwork.training.backbone_session import UsedBackbone, open_backbone_session
from topwork.training.embed import embed

log = structlog.get_logger(__name__)

NAMED = 5
"""Raising it names more skipped images or conflicts in an error message."""


class OnImage(Protocol):
    """Callback for the number of embedded images, and for the conflicts after the last one."""

    def __call__(self, done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
        """Report progress."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class NewExemplars:
    """The exemplars that a change adds, and its skipped and conflicting images."""

    shard: str
    """Digest of their shard; empty if there are none."""
    backbone: str
    """Digest of the backbone that embedded them."""
    images: int
    skipped: tuple[SkippedUpload, ...]
    conflicts: tuple[Conflict, ...]


class Embedder:
    """Embeds the uploads of changes. Keeps a session per backbone in memory."""

    def __init__(self, repository: Repository, *, cores: int, limits: InputLimits) -> None:
        self._repository = repository
        self._cores = cores
        self._limits = limits
        self._backbones: dict[str, UsedBackbone] = {}

    def embed(self, job: Job, parent: Current, on_image: OnImage) -> NewExemplars:
        """Embed the uploads with the parent's backbone and store their exemplars as a shard.

        Duplicates and conflicts are in the order of the uploads. Raises NotReady if too few images
        are usable (its message names skipped images) or the gate allows fewer conflicts.
        """
        new, skipped = self._embed_uploads(job, parent, on_image)
        known = KnownExemplars.of(self._repository.shards(parent.exemplars))
        conflicts: tuple[Conflict, ...] = ()
        if new is not None:
            place = {upload.name: number for number, upload in enumerate(job.uploads)}
            names = new.names
            duplicates = known.find_same(new, job.label)
            skipped += [
                SkippedUpload(
                    name=names[row],
                    reason="DUPLICATE",
                    message=f"{job.label!r} has an image of the same pixels already",
                )
                for row in sorted(np.flatnonzero(duplicates), key=lambda row: place[names[row]])
            ]
            new = new.where(~duplicates)
            conflicts = tuple(
                Conflict(
                    name=conflict.name,
                    label=conflict.label,
                    other=conflict.other,
                    exact=conflict.exact,
                )
                for conflict in sorted(
                    find_conflicts(new, known, job.label),
                    key=lambda conflict: place[conflict.name],
                )
            )
        usable = len(new) if new is not None else 0
        self._check_usable(job, usable, skipped)
        on_image(len(job.uploads), len(job.uploads), conflicts)
        most = job.gate.max_conflicts
        if most is not None and len(conflicts) > most:
            raise NotReady(_too_many_conflicts(conflicts, most), reason="LABEL_CONFLICTS")
        shard = ""
        if new is not None and usable:
            ((_, part),) = split(new)
            shard = self._repository.put_shard(part)
        return NewExemplars(
            shard=shard,
            backbone=parent.backbone,
            images=usable,
            skipped=tuple(skipped),
            conflicts=conflicts,
        )

    def _embed_uploads(
        self, job: Job, parent: Current, on_image: OnImage
    ) -> tuple[Exemplars | None, list[SkippedUpload]]:
        info = self._repository.backbone(parent)
        if info.digest not in self._backbones:
            opened = self._backbones[info.digest] = open_backbone_session(self._repository, info)
            if opened.off is not None:
                log.warning("backbone is off", **opened.off)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            on_image(done, len(job.uploads))

        exemplars, skipped = embed(
            [
                ImageSource(
                    name=upload.name,
                    label=job.label,
                    read=partial(self._repository.image, upload.digest),
                )
                for upload in job.uploads
            ],
            self._backbones[info.digest].session,
            info.preprocess,
            cores=self._cores,
            limits=self._limits,
            on_image=count,
        )
        unusable = [
            SkippedUpload(name=image.name, reason=image.reason, message=image.message)
            for image in skipped
        ]
        return exemplars, [*job.refused, *unusable]

    def _check_usable(self, job: Job, usable: int, skipped: Sequence[SkippedUpload]) -> None:
        """Raise NotReady for too few images; duplicates count as usable for an existing label."""
        least = min_images(job, self._limits)
        if KINDS[job.kind].label == "existing":
            usable += sum(image.reason == "DUPLICATE" for image in skipped)
        if usable < least:
            raise NotReady(_too_few(job.label, usable, least, skipped), reason="TOO_FEW_IMAGES")


def _too_few(label: str, usable: int, least: int, skipped: Sequence[SkippedUpload]) -> str:
    text = f"label {label!r} has {usable} usable images; at least {least} are needed"
    if skipped:
        named = "; ".join(f"{image.name}: {image.message}" for image in skipped[:NAMED])
        text += f" ({len(skipped)} skipped: {named}{'; ...' if len(skipped) > NAMED else ''})"
    return text


def _too_many_conflicts(conflicts: Sequence[Conflict], most: int) -> str:
    named = "; ".join(
        f"{conflict.name} shows the same as {conflict.other or 'an image'}, "
        f"labelled {conflict.label!r}"
        for conflict in conflicts[:NAMED]
    )
    return (
        f"{len(conflicts)} images are duplicates of images of other labels, and the gate allows "
        f"{most}: {named}{'; ...' if len(conflicts) > NAMED else ''}"
    )
