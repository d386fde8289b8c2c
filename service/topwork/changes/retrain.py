"""How a model is changed: embed what is new, re-solve the head on all exemplars, judge, publish.

Each function is idempotent, so that a step that was cut off can be run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from topwork.bundle.comparison import Rejection
from topwork.bundle.documents import document
from topwork.bundle.exemplars import Exemplars, merge, split
from topwork.bundle.findings import skipped_image
from topwork.bundle.manifest import BackboneInfo, Manifest, ShardRef
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeResult, Conflict, Failure, Job, Predicted, SkippedUpload
from topwork.changes.kinds import (
    KINDS,
    changed_shards,
    check_change,
    describe,
    least_images,
    renamed_labels,
)
from topwork.errors import Corrupt, NotFound, NotReady, Stale
from topwork.learning import gate
from topwork.learning.audit import audit_exemplars
from topwork.learning.conflicts import KnownExemplars, find_conflicts
from topwork.learning.gate import Judgement
from topwork.learning.learn import learn
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.report.content import Making
from topwork.runtime.backend import Session, open_session
from topwork.training.embed import ImageSource, embed
from topwork.training.publish import Origin, publish

OVERTAKEN = ("BACKBONE_CHANGED", "MODEL_CHANGED")
"""Reasons why a change must be made again: a fit or a rollback came between its steps."""


class OnImage(Protocol):
    """Is told of images done and in all, and of conflicts once they are known."""

    def __call__(self, done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
        """Take note."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class NewExemplars:
    """The exemplars that a change brings, and what was left out."""

    shard: str
    """Digest of their shard; empty if there are none."""
    backbone: str
    """Digest of the backbone that embedded them."""
    images: int
    skipped: tuple[SkippedUpload, ...]
    conflicts: tuple[Conflict, ...]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What was solved and judged; it does not serve yet."""

    result: ChangeResult
    published: bool
    """Whether there is a new revision."""
    rejected: Failure | None = None
    """Why it must not serve."""


class Trainer:
    """Changes the models of one repository. Keeps loaded backbones for the next time."""

    def __init__(
        self, repository: Repository, *, cores: int, limits: InputLimits = DEFAULT_LIMITS
    ) -> None:
        self._repository = repository
        self._cores = cores
        self._limits = limits
        self._sessions: dict[str, Session] = {}

    def embed(self, job: Job, on_image: OnImage) -> NewExemplars:
        """Embed the uploads with the serving revision's backbone and store their exemplars.

        Duplicates and conflicts are named in the order of the uploads.
        Raises NotReady if too few are usable (its message names the skipped ones) or too many show
        what another label's exemplars show, and what ``check_change`` raises.
        """
        parent = self._parent(job)
        if not KINDS[job.kind].has_images:
            return NewExemplars(
                shard="", backbone=parent.backbone, images=0, skipped=(), conflicts=()
            )
        new, skipped = self._embedded(job, parent, on_image)
        known = KnownExemplars.of(self._repository.shards(parent.exemplars))
        conflicts: tuple[Conflict, ...] = ()
        if new is not None:
            place = {upload.name: number for number, upload in enumerate(job.uploads)}
            names = new.names
            again = known.find_same(new, job.label)
            skipped += [
                SkippedUpload(
                    name=names[row],
                    reason="DUPLICATE",
                    message=f"{job.label!r} has an image of the same pixels already",
                )
                for row in sorted(np.flatnonzero(again), key=lambda row: place[names[row]])
            ]
            new = new.where(~again)
            conflicts = tuple(
                Conflict(name=one.name, label=one.label, other=one.other, exact=one.exact)
                for one in sorted(
                    find_conflicts(new, known, job.label), key=lambda one: place[one.name]
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

    def solve(self, job: Job, new: NewExemplars, operation: str) -> Candidate:
        """Solve, judge and publish the changed model; it does not serve yet.

        Raises what ``check_change`` raises, and NotReady if a fit gave the model another backbone
        meanwhile (BACKBONE_CHANGED), too few labels or images would remain, or the recipe's head
        cannot be learnt from them.
        """
        parent = self._parent(job)
        if parent.backbone != new.backbone:
            raise NotReady(
                f"model {job.model!r} was fitted on another backbone meanwhile",
                reason="BACKBONE_CHANGED",
            )
        shards = changed_shards(parent.exemplars, job, new.shard)
        if KINDS[job.kind].has_images and shards == parent.exemplars:
            result = ChangeResult(
                revision=parent.revision,
                images_used=0,
                skipped=new.skipped,
                conflicts=(),
                comparison=None,
            )
            return Candidate(result=result, published=False)
        # The shards, too: an id whose operation was deleted may come again with other images.
        published = self._repository.find(
            job.model,
            lambda one: (
                (one.operation, one.parent, one.exemplars) == (operation, parent.revision, shards)
            ),
        )
        if published is not None:
            return _candidate(published, new)
        try:
            return self._solved(job, new, parent, shards, operation)
        except (Corrupt, NotFound) as error:
            serving = self._repository.serving(job.model)
            if serving == parent.revision:
                raise
            # Nothing keeps the parent any more: gc may have deleted what the change is made of.
            raise NotReady(
                f"model {job.model!r} serves revision {serving} by now, and {parent.revision} "
                f"cannot be read: {error}",
                reason="MODEL_CHANGED",
            ) from error

    def serve(self, job: Job, revision: int, operation: str) -> None:
        """Let ``revision`` serve, once: what moved the pointer since stays.

        Raises Stale, or NotReady with the reason MODEL_CHANGED, if another one than its parent
        serves.
        """
        if self._repository.was_moved_by(job.model, operation, revision):
            return
        parent = self._repository.manifest(job.model, revision).parent
        serving = self._repository.set_serving(
            job.model, revision, why=job.kind, operation=operation, parent=parent
        )
        if serving != revision:
            text = (
                f"model {job.model!r} serves revision {serving} by now, and revision {revision} "
                f"was made from {parent}"
            )
            if job.expected_revision:
                raise Stale(text)
            raise NotReady(text, reason="MODEL_CHANGED")

    def _parent(self, job: Job) -> Manifest:
        parent = self._repository.manifest(job.model, self._repository.serving(job.model))
        check_change(job, parent, self._limits)
        return parent

    def _embedded(
        self, job: Job, parent: Manifest, on_image: OnImage
    ) -> tuple[Exemplars | None, list[SkippedUpload]]:
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
                    label=job.label,
                    read=lambda digest=upload.digest: self._repository.image(digest),  # type: ignore[misc]  # mypy cannot infer a lambda's default
                )
                for upload in job.uploads
            ],
            self._session(parent, info),
            info.preprocess,
            cores=self._cores,
            limits=self._limits,
            on_image=count,
        )
        left = [
            SkippedUpload(name=one.name, reason=one.reason, message=one.message) for one in skipped
        ]
        return exemplars, [*job.refused, *left]

    def _check_usable(self, job: Job, usable: int, skipped: Sequence[SkippedUpload]) -> None:
        """Raise NotReady if there are too few images; those that the label has are no failure."""
        least = least_images(job, self._limits)
        if KINDS[job.kind].label == "there":
            usable += sum(one.reason == "DUPLICATE" for one in skipped)
        if usable < least:
            raise NotReady(_too_few(job.label, usable, least, skipped), reason="TOO_FEW_IMAGES")

    def _solved(
        self,
        job: Job,
        new: NewExemplars,
        parent: Manifest,
        shards: tuple[ShardRef, ...],
        operation: str,
    ) -> Candidate:
        exemplars, before = self._read(parent, shards)
        recipe = job.recipe or parent.recipe
        learned = learn(exemplars, seed=parent.seed, recipe=recipe, threads=self._cores)
        findings = (
            *(
                skipped_image(one.name, job.label, reason=one.reason, message=one.message)
                for one in new.skipped
            ),
            *audit_exemplars(exemplars, learned.judged, seed=parent.seed),
        )
        comparison = gate.compare(
            before,
            Judgement.of(exemplars, learned.metrics),
            taught=job.label if KINDS[job.kind].has_images else None,
            renamed=renamed_labels(job),
        )
        failures = gate.check(comparison, job.gate)
        if job.validate_only:
            result = ChangeResult(
                revision=0,
                images_used=new.images,
                skipped=new.skipped,
                conflicts=new.conflicts,
                comparison=comparison,
                gate_failures=failures,
                findings=findings,
                predicted=Predicted(labels=exemplars.labels, metrics=learned.metrics),
            )
            return Candidate(result=result, published=False)
        manifest = publish(
            self._repository,
            exemplars,
            learned,
            model=job.model,
            backbone=parent.backbone,
            backbone_info=parent.backbone_info,
            shards=shards,
            seed=parent.seed,
            recipe=recipe,
            origin=Origin(
                change=job.kind,
                parent=parent.revision,
                operation=operation,
                comparison=comparison,
                rejection=Rejection(gate=job.gate, failures=failures) if failures else None,
            ),
            making=Making(
                command=f"{describe(job, new.images)}, operation {operation}", findings=findings
            ),
        )
        return _candidate(manifest, new)

    def _read(self, parent: Manifest, shards: tuple[ShardRef, ...]) -> tuple[Exemplars, Judgement]:
        """Return the exemplars of ``shards`` and what the parent is judged by; read each once."""
        refs = dict.fromkeys(ref.digest for ref in (*parent.exemplars, *shards))
        opened = {digest: self._repository.shard(digest) for digest in refs}
        exemplars = merge([(ref.label, opened[ref.digest]) for ref in shards])
        old = [(ref.label, opened[ref.digest]) for ref in parent.exemplars]
        return exemplars, Judgement.of_shards(old, self._repository.metrics(parent))

    def _session(self, manifest: Manifest, info: BackboneInfo) -> Session:
        if info.digest not in self._sessions:
            self._sessions[info.digest] = open_session(
                self._repository.backbone_model(manifest.backbone), output="embedding"
            )
        return self._sessions[info.digest]


def _candidate(manifest: Manifest, new: NewExemplars) -> Candidate:
    result = ChangeResult(
        revision=manifest.revision,
        images_used=new.images,
        skipped=new.skipped,
        conflicts=new.conflicts,
        comparison=manifest.comparison,
    )
    if manifest.rejection is None:
        return Candidate(result=result, published=True)
    failure = Failure(
        kind="NotReady",
        reason="GATE_FAILED",
        message=f"revision {manifest.revision} was rejected: "
        + "; ".join(manifest.rejection.failures),
        revision=manifest.revision,
        comparison=manifest.comparison,
    )
    return Candidate(result=result, published=True, rejected=failure)


def _too_few(label: str, usable: int, least: int, skipped: Sequence[SkippedUpload]) -> str:
    text = f"label {label!r} has {usable} usable images; at least {least} are needed"
    if skipped:
        named = "; ".join(f"{one.name}: {one.message}" for one in skipped[:5])
        text += f" ({len(skipped)} skipped: {named}{'; ...' if len(skipped) > 5 else ''})"
    return text


def _too_many_conflicts(conflicts: Sequence[Conflict], most: int) -> str:
    named = "; ".join(
        f"{one.name} shows what {one.other or 'an image'} shows, labelled {one.label!r}"
        for one in conflicts[:5]
    )
    return (
        f"{len(conflicts)} images show what other labels' images show, and the gate lets {most}: "
        f"{named}{'; ...' if len(conflicts) > 5 else ''}"
    )
