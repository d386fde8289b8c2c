"""Changes of single examples: the checks, and the shards without or with another label of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from topwork.bundle.draft import MIN_LABELS
from topwork.bundle.examples import ExampleIndex, rows_with
from topwork.bundle.manifest import ShardRef
from topwork.bundle.shards import Shard
from topwork.changes.jobs import ChangedExample, Job
from topwork.changes.kinds import KINDS
from topwork.errors import AlreadyExists, NotFound, NotReady
from topwork.limits import InputLimits


def check_examples(
    job: Job, stored: ExampleIndex, limits: InputLimits
) -> tuple[ChangedExample, ...]:
    """Return the examples that ``job`` names, with the labels that they lose, by digest.

    ``stored`` are all examples of the serving revision. Raises NotFound for an unknown example, or
    one without the label, AlreadyExists for one that has only the new label, and NotReady if too
    many or too few labels, or too few images of a label, would remain.
    """
    labels_of = defaultdict(set)
    for row in np.flatnonzero(rows_with(stored.digests, job.digests)).tolist():
        label = stored.labels[stored.targets[row]]
        labels_of[stored.digests[row].tobytes().hex()].add(label)
    moves = KINDS[job.kind].examples == "move"
    # A move leaves an example only the new label, a removal none, or none but the others.
    lost = {
        digest: found - {job.label} if moves else found & {job.label} if job.label else found
        for digest, found in labels_of.items()
    }
    unknown = [digest for digest in job.digests if not (labels_of if moves else lost).get(digest)]
    if unknown:
        under = f" with the label {job.label!r}" if job.label and not moves else ""
        raise NotFound(
            f"model {job.model!r} has no example {unknown[0]}{under}{_others(unknown)}",
            kind="example",
            resource=f"models/{job.model}/examples/{unknown[0]}",
        )
    unchanged = [digest for digest in job.digests if not lost[digest]]
    if unchanged:
        raise AlreadyExists(
            f"example {unchanged[0]} of model {job.model!r} has the label {job.label!r} already"
            f"{_others(unchanged)}",
            kind="example",
            resource=f"models/{job.model}/examples/{unchanged[0]}",
            reason="LABEL_UNCHANGED",
        )
    counts = np.bincount(stored.targets, minlength=len(stored.labels)).tolist()
    before = Counter(dict(zip(stored.labels, counts, strict=True)))
    after = before - Counter(label for labels in lost.values() for label in labels)
    if moves:
        after[job.label] += sum(job.label not in labels for labels in labels_of.values())
    _check_remaining(job, before, after, limits)
    return tuple(
        ChangedExample(digest=digest, labels=tuple(sorted(lost[digest]))) for digest in job.digests
    )


def changed_examples(
    job: Job, parts: Sequence[tuple[ShardRef, Shard]], put: Callable[[Shard], str]
) -> tuple[ShardRef, ...]:
    """Return the shards after ``job``, which removes or moves the examples that it names.

    A shard with such an example is replaced by one without it; ``put`` stores a shard. Moved
    examples keep the operation that added them.
    """
    moves = KINDS[job.kind].examples == "move"
    kept, moved = [], []
    for ref, shard in parts:
        named = rows_with(shard.digests, job.digests)
        if job.label and (ref.label == job.label) == moves:
            named[:] = False  # the label that they move to, or one that they keep
        if not named.any():
            kept.append(ref)
            continue
        if not named.all():
            kept.append(replace(ref, digest=put(shard.where(~named))))
        if moves:
            moved.append(replace(ref, label=job.label, digest=put(shard.where(named))))
    return tuple(dict.fromkeys([*kept, *moved]))


def _check_remaining(
    job: Job, before: Mapping[str, int], after: Mapping[str, int], limits: InputLimits
) -> None:
    """Raise NotReady if the change leaves too many or too few labels, or images of a label.

    A label may go with its last example. One that had too few images before may have fewer.
    """
    if len(after) < MIN_LABELS:
        text = f"{len(after)} labels would remain; at least {MIN_LABELS} must"
        raise NotReady(f"of model {job.model!r} {text}", reason="TOO_FEW_LABELS")
    if len(after) > max(limits.max_labels, len(before)):
        raise NotReady(
            f"model {job.model!r} has {len(before)} labels; the limit is {limits.max_labels}",
            reason="TOO_MANY_LABELS",
        )
    least = limits.min_images_per_label
    for label, images in sorted(after.items()):
        had = before.get(label, 0)
        if images < least and (not had or (images < had and had >= least)):
            raise NotReady(
                f"label {label!r} would have {images} images; at least {least} are needed, or none",
                reason="TOO_FEW_IMAGES",
            )


def _others(digests: Sequence[str]) -> str:
    return f" (and {len(digests) - 1} more)" if len(digests) > 1 else ""
