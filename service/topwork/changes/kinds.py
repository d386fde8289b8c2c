"""Kinds of changes: one table of what each needs and does, and the rules that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from topwork.bundle.manifest import Manifest, ShardRef
from topwork.changes.jobs import ChangeKind, Job
from topwork.errors import AlreadyExists, NotFound, NotReady, QuotaExceeded, Stale
from topwork.limits import InputLimits

LEAST_LABELS = 2
"""Labels that a model must keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRules:
    """The rules of one kind of change."""

    name: str
    """Of its rpc, for reports."""
    label: Literal["new", "there", "none"] = "there"
    """Whether the model must not have the label, must have it, or the change is about none."""
    has_images: bool = False
    """Whether it brings images of the label."""
    removes: bool = False
    """Whether the label is removed; alone such a change is made where the quota is used up."""
    renames: bool = False
    """Whether the label becomes ``new_label``, which the model must not have."""
    has_recipe: bool = False
    """Whether it chooses a head and a normalisation; else the parent's stay."""


KINDS: Mapping[ChangeKind, ChangeRules] = {
    "add_class": ChangeRules(name="AddClass", label="new", has_images=True),
    "add_examples": ChangeRules(name="AddExamples", has_images=True),
    "remove_class": ChangeRules(name="RemoveClass", removes=True),
    "rename_class": ChangeRules(name="RenameClass", renames=True),
    "retrain": ChangeRules(name="Retrain", label="none", has_recipe=True),
}


def check_change(job: Job, parent: Manifest, limits: InputLimits) -> None:
    """Raise what forbids ``job`` while ``parent`` serves.

    Stale if another revision was expected, NotFound for a label that is not there, AlreadyExists
    for one that is, NotReady for too many labels or too few, QuotaExceeded for too many images.
    """
    kind, labels = KINDS[job.kind], parent.labels
    if job.expected_revision not in {0, parent.revision}:
        raise Stale(
            f"model {job.model!r} serves revision {parent.revision}, not {job.expected_revision}"
        )
    if kind.label == "there" and job.label not in labels:
        raise NotFound(
            f"model {job.model!r} has no label {job.label!r}", kind="label", resource=job.label
        )
    fresh = job.label if kind.label == "new" else job.new_label if kind.renames else None
    if fresh in labels:
        raise AlreadyExists(
            f"model {job.model!r} has a label {fresh!r} already",
            kind="label",
            resource=fresh,
            reason="LABEL_EXISTS",
        )
    if kind.label == "new" and len(labels) >= limits.max_labels:
        raise NotReady(
            f"model {job.model!r} has {len(labels)} labels; the limit is {limits.max_labels}",
            reason="TOO_MANY_LABELS",
        )
    images = parent.images + len(job.uploads)
    if kind.has_images and images > limits.max_images_per_model:
        raise QuotaExceeded(
            f"model {job.model!r} would have {images} images; the limit is "
            f"{limits.max_images_per_model}",
            subject=f"models/{job.model}",
            reason="TOO_MANY_IMAGES",
        )
    if kind.removes and len(labels) <= LEAST_LABELS:
        raise NotReady(
            f"model {job.model!r} has {len(labels)} labels; at least {LEAST_LABELS} must remain",
            reason="TOO_FEW_LABELS",
        )


def changed_shards(shards: tuple[ShardRef, ...], job: Job, new: str) -> tuple[ShardRef, ...]:
    """Return the shards after ``job``; ``new`` is the digest of what it brings, or empty."""
    kind = KINDS[job.kind]
    if kind.removes:
        return tuple(shard for shard in shards if shard.label != job.label)
    if kind.has_images:
        brought = [ShardRef(label=job.label, digest=new)] if new else []
        return tuple(dict.fromkeys([*shards, *brought]))
    names = renamed_labels(job)
    return tuple(
        ShardRef(label=names.get(shard.label, shard.label), digest=shard.digest) for shard in shards
    )


def renamed_labels(job: Job) -> dict[str, str]:
    """Return the labels that ``job`` renames, and their new names."""
    return {job.label: job.new_label} if KINDS[job.kind].renames else {}


def least_images(job: Job, limits: InputLimits) -> int:
    """Return how many usable images ``job`` must bring at least, where it brings any."""
    return limits.min_images_per_label if KINDS[job.kind].label == "new" else 1


def describe(job: Job, images: int) -> str:
    """Return what ``job`` asked for, for the report; ``images`` are those that it brought."""
    kind = KINDS[job.kind]
    label = f" {job.label!r}" if job.label else ""
    new_label = f" to {job.new_label!r}" if kind.renames else ""
    brought = f" ({images} images)" if kind.has_images else ""
    return f"{kind.name}{label}{new_label}{brought}"
