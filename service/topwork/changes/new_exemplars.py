"""Embed step of a change: its uploads become a shard of exemplars a label, without duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import structlog

from topwork.bundle.documents import document
from topwork.bundle.draft import Current
from topwork.bundle.exemplars import split
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.shards import Shard
from topwork.bundle.store import Repository
from topwork.changes.held_out import HeldOut
from topwork.changes.jobs import Conflict, Job, SkippedUpload
from topwork.changes.kinds import new_labels, taught_labels
from topwork.errors import NotReady
from topwork.inputs.image_source import ImageSource
from topwork.inputs.kinds import kind_of
from topwork.learning.conflicts import KnownExemplars, find_conflicts
from topwork.limits import InputLimits
from topwork.training.backbone_session import (
    EmbeddingSession,
    UsedBackbone,
    open_backbone_session,
)
from topwork.training.embed import embed, stored_image

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

    shards: dict[str, str] = field(default_factory=dict)
    """Digests of their shards, by label."""
    shard: str = ""
    """As earlier versions stored it: the digest of the only shard, of the job's ``label``."""
    backbone: str
    """Digest of the backbone that embedded them."""
    images: int
    skipped: tuple[SkippedUpload, ...]
    conflicts: tuple[Conflict, ...]

    def shards_of(self, job: Job) -> dict[str, str]:
        """Return the digests of the shards that they are for ``job``, by label."""
        return {job.label: self.shard} if self.shard else self.shards


class Embedder:
    """Embeds the uploads of changes. Keeps a session per backbone in memory."""

    def __init__(self, repository: Repository, *, cores: int, limits: InputLimits) -> None:
        self._repository = repository
        self._cores = cores
        self._limits = limits
        self._backbones: dict[str, UsedBackbone] = {}

    def embed(self, job: Job, parent: Current, on_image: OnImage) -> NewExemplars:
        """Embed the uploads with the parent's backbone and store the exemplars of each label.

        Duplicates and conflicts are in the order of the uploads. Raises NotReady if too few images
        of a label are usable (its message names skipped images) or the gate allows fewer conflicts.
        """
        place = {
            (upload.label or job.label, upload.name): number
            for number, upload in enumerate(job.uploads)
        }
        embedded, skipped = self.embed_uploads(job, parent, on_image)
        stored = [*self._repository.shards(parent.exemplars)]
        known = KnownExemplars.of(stored)
        new: dict[str, Shard] = {}
        duplicates = []
        have = kind_of(self._repository.backbone(parent).preprocess).same
        held_out = HeldOut.of(self._repository, job.model, parent.backbone)
        for label, shard in embedded:
            kept, excluded = held_out.split(label, shard)
            skipped += excluded
            same = known.find_same(kept, label)
            new[label] = kept.where(~same)
            duplicates += [
                SkippedUpload(
                    name=kept.names[row],
                    label=label,
                    reason="DUPLICATE",
                    message=f"{label!r} has an image of the {have} already",
                )
                for row in np.flatnonzero(same).tolist()
            ]
        skipped += sorted(duplicates, key=lambda image: place[image.label, image.name])
        # New images may also conflict with one another.
        known = KnownExemplars.of([*stored, *new.items()]) if len(new) > 1 else known
        conflicts = sorted(
            (
                Conflict(
                    name=conflict.name,
                    label=conflict.label,
                    other=conflict.other,
                    exact=conflict.exact,
                    uploaded_label=label,
                )
                for label, shard in new.items()
                for conflict in find_conflicts(shard, known, label)
            ),
            key=lambda conflict: place[conflict.uploaded_label, conflict.name],
        )
        usable = {label: len(shard) for label, shard in new.items()}
        self._check_usable(job, parent, usable, skipped)
        on_image(len(job.uploads), len(job.uploads), tuple(conflicts))
        most = job.gate.max_conflicts
        if most is not None and len(conflicts) > most:
            raise NotReady(_too_many_conflicts(conflicts, most), reason="LABEL_CONFLICTS")
        return NewExemplars(
            shards={
                label: self._repository.put_shard(shard)
                for label, shard in new.items()
                if len(shard)
            },
            backbone=parent.backbone,
            images=sum(usable.values()),
            skipped=tuple(skipped),
            conflicts=tuple(conflicts),
        )

    def session(self, info: BackboneInfo) -> EmbeddingSession:
        """Return the session of a stored backbone, or of its twin. Raises Corrupt."""
        if info.digest not in self._backbones:
            opened = self._backbones[info.digest] = open_backbone_session(self._repository, info)
            if opened.off is not None:
                log.warning("backbone is off", **opened.off)
        return self._backbones[info.digest].session

    def embed_uploads(
        self, job: Job, parent: Current, on_image: OnImage
    ) -> tuple[tuple[tuple[str, Shard], ...], list[SkippedUpload]]:
        """Return the shard of each label's images, in label order, and the skipped images.

        ``parent`` is the revision, or draft, whose backbone embeds them.
        """
        info = self._repository.backbone(parent)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            on_image(done, len(job.uploads))

        exemplars, skipped = embed(
            [
                ImageSource(
                    name=upload.name,
                    label=upload.label or job.label,
                    read=partial(stored_image, self._repository, upload.digest),
                )
                for upload in job.uploads
            ],
            self.session(info),
            info.preprocess,
            cores=self._cores,
            preview_pixels=parent.preview_pixels,
            limits=self._limits,
            on_image=count,
        )
        unusable = [
            SkippedUpload(
                name=image.name, label=image.label, reason=image.reason, message=image.message
            )
            for image in skipped
        ]
        return () if exemplars is None else split(exemplars), [*job.refused, *unusable]

    def _check_usable(
        self,
        job: Job,
        parent: Current,
        usable: Mapping[str, int],
        skipped: Sequence[SkippedUpload],
    ) -> None:
        """Raise NotReady for labels with too few images, of which an existing label needs one.

        Duplicates count as usable for an existing label.
        """
        new, short = new_labels(job, parent), []
        for label in taught_labels(job):
            own = [image for image in skipped if (image.label or job.label) == label]
            images = usable.get(label, 0)
            if label not in new:
                images += sum(image.reason == "DUPLICATE" for image in own)
            least = max(1, self._limits.min_images_per_label) if label in new else 1
            if images < least:
                short.append(_too_few(label, images, least, own))
        if short:
            more = [f"and {len(short) - NAMED} more labels"] if len(short) > NAMED else []
            raise NotReady("; ".join([*short[:NAMED], *more]), reason="TOO_FEW_IMAGES")


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
