"""Kinds of changes: the table of their properties, and the checks derived from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from topwork.bundle.draft import MIN_LABELS, Current, Draft, not_ready
from topwork.bundle.manifest import ShardRef
from topwork.changes.jobs import ChangeKind, Job
from topwork.errors import AlreadyExists, NotFound, NotReady, QuotaExceeded, Stale
from topwork.limits import InputLimits

NAMED = 5
"""Raising it names more labels in messages and reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRules:
    """The properties of a kind of change."""

    name: str
    """The RPC's name, for the report."""
    label: Literal["new", "existing", "optional", "any", "several", "none"] = "existing"
    """Kind of label that the change is about; ``optional``: an existing one or none; ``several``:
    any number of new and existing ones, in ``Job.labels``."""
    has_images: bool = False
    """True if it adds images of its labels."""
    removes: bool = False
    """True if it removes the label."""
    renames: bool = False
    """True if the label becomes ``new_label``, which must be new."""
    has_recipe: bool = False
    """True if it sets the recipe; other changes use the parent's."""
    examples: Literal["", "remove", "move"] = ""
    """What it does with the examples that it names; empty: it names none."""
    evaluates: bool = False
    """True if it evaluates a revision, and changes none."""

    @property
    def frees(self) -> bool:
        """True if it only removes data; such a change is accepted when the quota is exceeded."""
        return self.removes or self.examples == "remove"

    @property
    def teaches(self) -> bool:
        """True if its labels get images."""
        return self.has_images or self.examples == "move"


KINDS: Mapping[ChangeKind, ChangeRules] = {
    "add_class": ChangeRules(name="AddClass", label="new", has_images=True),
    "add_examples": ChangeRules(name="AddExamples", has_images=True),
    "add_classes": ChangeRules(name="AddClasses", label="several", has_images=True),
    "remove_class": ChangeRules(name="RemoveClass", removes=True),
    "rename_class": ChangeRules(name="RenameClass", renames=True),
    "retrain": ChangeRules(name="Retrain", label="none", has_recipe=True),
    "remove_examples": ChangeRules(name="RemoveExamples", label="optional", examples="remove"),
    "move_examples": ChangeRules(name="MoveExamples", label="any", examples="move"),
    "evaluate": ChangeRules(name="Evaluate", label="none", evaluates=True),
}


def check_change(job: Job, parent: Current, limits: InputLimits) -> None:
    """Raise an error if ``job`` is not allowed while ``parent`` serves, or is the model's draft.

    Stale if another revision is expected, NotFound for a missing label, AlreadyExists for a new
    label that exists, NotReady for too many or too few labels, QuotaExceeded for too many images.
    ``examples.check_examples`` checks the examples that a job names.
    """
    kind, labels = KINDS[job.kind], parent.labels
    if job.expected_revision not in {0, parent.revision}:
        raise Stale(
            f"model {job.model!r} serves revision {parent.revision}, not {job.expected_revision}"
            if parent.revision
            else f"model {job.model!r} does not serve yet, not revision {job.expected_revision}"
        )
    if (kind.has_recipe or kind.examples or kind.evaluates) and isinstance(parent, Draft):
        raise not_ready(parent)
    existing = kind.label == "existing" or (kind.label == "optional" and job.label)
    if existing and job.label not in labels:
        raise NotFound(
            f"model {job.model!r} has no label {job.label!r}", kind="label", resource=job.label
        )
    added = job.label if kind.label == "new" else job.new_label if kind.renames else None
    if added in labels:
        raise AlreadyExists(
            f"model {job.model!r} has a label {added!r} already",
            kind="label",
            resource=added,
            reason="LABEL_EXISTS",
        )
    new = new_labels(job, parent)
    if new and len(labels) + len(new) > limits.max_labels:
        raise NotReady(
            f"model {job.model!r} has {len(labels)} labels"
            f"{f', and {len(new)} are new' if job.labels else ''}; "
            f"the limit is {limits.max_labels}",
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
    if kind.removes and len(labels) <= MIN_LABELS and not isinstance(parent, Draft):
        raise NotReady(
            f"model {job.model!r} has {len(labels)} labels; at least {MIN_LABELS} must remain",
            reason="TOO_FEW_LABELS",
        )


def changed_shards(
    shards: tuple[ShardRef, ...], job: Job, new: Mapping[str, str], operation: str = ""
) -> tuple[ShardRef, ...]:
    """Return the shards after ``job``; ``new`` are the digests of its own shards, by label.

    ``operation`` is its id. See ``examples.changed_examples`` for jobs that name examples.
    """
    kind = KINDS[job.kind]
    if kind.removes:
        return tuple(shard for shard in shards if shard.label != job.label)
    if kind.has_images:
        accepted = datetime.fromtimestamp(job.accepted, UTC)
        added = (
            ShardRef(label=label, digest=digest, operation=operation, added=accepted)
            for label, digest in sorted(new.items())
        )
        return tuple(dict.fromkeys([*shards, *added]))
    names = renamed_labels(job)
    return tuple(replace(shard, label=names.get(shard.label, shard.label)) for shard in shards)


def renamed_labels(job: Job) -> dict[str, str]:
    """Return the new names of the labels that ``job`` renames, by old name."""
    return {job.label: job.new_label} if KINDS[job.kind].renames else {}


def taught_labels(job: Job) -> tuple[str, ...]:
    """Return the labels that get images, sorted."""
    return (job.labels or (job.label,)) if KINDS[job.kind].teaches else ()


def new_labels(job: Job, parent: Current) -> tuple[str, ...]:
    """Return the labels that ``job`` adds with images of their own, sorted."""
    if not KINDS[job.kind].has_images:
        return ()
    return tuple(label for label in taught_labels(job) if label not in parent.labels)


def describe(job: Job, images: int) -> str:
    """Return a description of ``job``, which added ``images`` images, for the report."""
    kind = KINDS[job.kind]
    labels = job.labels or ((job.label,) if job.label else ())
    label = f" {named_labels(labels)}" if labels else ""
    new_label = f" to {job.new_label!r}" if kind.renames else ""
    images = len(job.digests) if kind.examples else images
    added = f" ({images} images)" if kind.has_images or kind.examples else ""
    return f"{kind.name}{label}{new_label}{added}"


def named_labels(labels: Sequence[str]) -> str:
    """Return the labels for a sentence, the first NAMED by name."""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(map(repr, labels[:NAMED])) + more
