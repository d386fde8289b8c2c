"""What a change makes of a model's shards, and when it may not be made."""

from __future__ import annotations

from topwork.bundle.manifest import Manifest, ShardRef
from topwork.changes.jobs import Job
from topwork.errors import AlreadyExists, NotFound, NotReady, QuotaExceeded, Stale
from topwork.limits import Limits

LEAST_LABELS = 2
"""Labels that a model must keep."""


def check_change(job: Job, parent: Manifest, limits: Limits) -> None:
    """Raise what forbids ``job`` while ``parent`` serves.

    Stale if another revision was expected, NotFound for a label that is not there, AlreadyExists
    for one that is, NotReady for too many labels or too few, QuotaExceeded for too many images.
    """
    if job.expected_revision not in {0, parent.revision}:
        raise Stale(
            f"model {job.model!r} serves revision {parent.revision}, not {job.expected_revision}"
        )
    if job.kind not in {"add_class", "retrain"} and job.label not in parent.labels:
        raise NotFound(
            f"model {job.model!r} has no label {job.label!r}", kind="label", resource=job.label
        )
    fresh = {"add_class": job.label, "rename_class": job.new_label}.get(job.kind)
    if fresh in parent.labels:
        raise AlreadyExists(
            f"model {job.model!r} has a label {fresh!r} already",
            kind="label",
            resource=fresh,
            reason="LABEL_EXISTS",
        )
    if job.kind == "add_class" and len(parent.labels) >= limits.max_labels:
        raise NotReady(
            f"model {job.model!r} has {len(parent.labels)} labels; the limit is "
            f"{limits.max_labels}",
            reason="TOO_MANY_LABELS",
        )
    images = parent.images + len(job.uploads)
    if job.kind in {"add_class", "add_examples"} and images > limits.max_images_per_model:
        raise QuotaExceeded(
            f"model {job.model!r} would have {images} images; the limit is "
            f"{limits.max_images_per_model}",
            subject=f"models/{job.model}",
            reason="TOO_MANY_IMAGES",
        )
    if job.kind == "remove_class" and len(parent.labels) <= LEAST_LABELS:
        raise NotReady(
            f"model {job.model!r} has {len(parent.labels)} labels; at least {LEAST_LABELS} must "
            "remain",
            reason="TOO_FEW_LABELS",
        )


def changed_shards(shards: tuple[ShardRef, ...], job: Job, new: str) -> tuple[ShardRef, ...]:
    """Return the shards after ``job``; ``new`` is the digest of what it brings, or empty."""
    match job.kind:
        case "add_class" | "add_examples":
            brought = [ShardRef(label=job.label, digest=new)] if new else []
            return tuple(dict.fromkeys([*shards, *brought]))
        case "remove_class":
            return tuple(one for one in shards if one.label != job.label)
        case "rename_class":
            return tuple(
                ShardRef(label=job.new_label, digest=one.digest) if one.label == job.label else one
                for one in shards
            )
        case "retrain":
            return shards
