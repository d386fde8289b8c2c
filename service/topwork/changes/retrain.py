"""Steps of a change: embed the uploads, re-solve the head on all exemplars, publish, serve.

Each step is idempotent, so that an interrupted step can be repeated.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from topwork.bundle.comparison import Rejection
from topwork.bundle.documents import document
from topwork.bundle.draft import Current, Draft, missing_labels
from topwork.bundle.evaluation_sets import EvaluationSets
from topwork.bundle.examples import index_of_shards
from topwork.bundle.exemplars import Exemplars, ShardRows, merge, shard_rows
from topwork.bundle.findings import skipped_image
from topwork.bundle.manifest import Manifest, ShardRef
from topwork.bundle.shards import Shard
from topwork.bundle.store import Repository
from topwork.changes.evaluations import Evaluator
from topwork.changes.examples import changed_examples, check_examples
from topwork.changes.jobs import ChangeResult, Failure, Job, Predicted
from topwork.changes.kinds import (
    KINDS,
    changed_shards,
    check_change,
    describe,
    renamed_labels,
    taught_labels,
)
from topwork.changes.new_exemplars import Embedder, NewExemplars, OnImage
from topwork.errors import Corrupt, NotFound, NotReady, Stale
from topwork.learning import gate
from topwork.learning.audit import audit_exemplars
from topwork.learning.gate import Judgement
from topwork.learning.learn import learn
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.report.content import Making
from topwork.training.publish import Origin, publish

OVERTAKEN = ("BACKBONE_CHANGED", "MODEL_CHANGED")
"""Reasons to repeat a change: a fit or a rollback came between its steps."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A solved head and its judgement by the gate; it does not serve yet."""

    result: ChangeResult
    published: bool
    """True if there is a new revision, or a new state of the draft."""
    rejected: Failure | None = None
    """The gate's reason not to serve it."""


class Trainer:
    """Runs the steps of changes in one repository."""

    def __init__(
        self, repository: Repository, *, cores: int, limits: InputLimits = DEFAULT_LIMITS
    ) -> None:
        self._repository = repository
        self._cores = cores
        self._limits = limits
        self._embedder = Embedder(repository, cores=cores, limits=limits)
        self._evaluator = Evaluator(repository, self._embedder, cores=cores)

    def embed(self, job: Job, on_image: OnImage) -> NewExemplars:
        """Embed the uploads with the model's backbone; see ``Embedder.embed``.

        Also raises the errors of ``check_change``.
        """
        if KINDS[job.kind].evaluates:
            return self._evaluator.embed(job, on_image)
        parent = self._parent(job)
        if KINDS[job.kind].has_images:
            return self._embedder.embed(job, parent, on_image)
        return NewExemplars(backbone=parent.backbone, images=0, skipped=(), conflicts=())

    def solve(self, job: Job, new: NewExemplars, operation: str) -> Candidate:
        """Solve the head on all exemplars, judge and publish it; it does not serve yet.

        A draft without enough labels for a head gets none: see ``keep``. Raises the errors of
        ``check_change``, and NotReady if a fit changed the backbone since the embed step
        (BACKBONE_CHANGED), too few labels or images remain, or the recipe's head cannot be learnt
        from them. An evaluation only judges: see ``Evaluator.judge``.
        """
        if KINDS[job.kind].evaluates:
            result = self._evaluator.judge(job, new, operation)
            return Candidate(result=result, published=False)
        parent = self._parent(job)
        if parent.backbone != new.backbone:
            raise NotReady(
                f"model {job.model!r} was fitted on another backbone meanwhile",
                reason="BACKBONE_CHANGED",
            )
        result = ChangeResult(
            parent=parent.revision,
            images_used=new.images,
            skipped=new.skipped,
            conflicts=new.conflicts,
        )
        opened = functools.cache(self._repository.shard)  # each is verified and read once
        shards = changed_shards(parent.exemplars, job, new.shards_of(job), operation)
        if KINDS[job.kind].has_images and shards == parent.exemplars:
            unchanged = replace(
                result,
                revision=parent.revision,
                images_used=0,
                conflicts=(),
                missing_labels=missing_labels(shards) if isinstance(parent, Draft) else 0,
            )
            return Candidate(result=unchanged, published=False)
        if isinstance(parent, Draft) and (missing := missing_labels(shards)):
            kept = replace(result, missing_labels=missing)
            return Candidate(result=kept, published=not job.validate_only)
        if KINDS[job.kind].examples:
            with self._parent_read(parent):
                parts = [(ref, opened(ref.digest)) for ref in parent.exemplars]
            stored = index_of_shards([(ref.label, shard) for ref, shard in parts])
            result = replace(result, examples=check_examples(job, stored, self._limits))
            shards = changed_examples(job, parts, self._repository.put_shard)
        # Also compare the shards: a request id may be reused after its operation was deleted.
        published = self._repository.find(
            job.model,
            lambda manifest: (
                (manifest.operation, manifest.parent, manifest.exemplars)
                == (operation, parent.revision, shards)
            ),
        )
        if published is not None:
            self._evaluator.record(job, published, None, opened)
            return _candidate(published, result)
        with self._parent_read(parent):
            return self._solve(job, result, parent, shards, operation, opened)

    def serve(self, job: Job, revision: int, operation: str) -> None:
        """Move the serving pointer to ``revision``, unless this operation has moved it before.

        Raises Stale, or NotReady with the reason MODEL_CHANGED, if its parent does not serve.
        """
        if self._repository.was_moved_by(job.model, operation, revision):
            return
        # Before the pointer moves: sets must know both names while either revision serves.
        EvaluationSets(self._repository, job.model).follow(renamed_labels(job))
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

    def keep(self, job: Job, new: NewExemplars, operation: str) -> None:
        """Store the exemplars after ``job`` in the model's draft, unless this operation did before.

        Raises the errors of ``check_change``, and NotReady with the reason MODEL_CHANGED if a fit
        made the model serve.
        """
        with self._repository.locked(job.model):
            if self._repository.was_moved_by(job.model, operation, 0):
                return
            draft = self._parent(job)
            if isinstance(draft, Manifest):
                text = f"model {job.model!r} serves revision {draft.revision} by now"
                raise NotReady(text, reason="MODEL_CHANGED")
            shards = changed_shards(draft.exemplars, job, new.shards_of(job), operation)
            images = sum(len(self._repository.shard(ref.digest)) for ref in shards)
            self._repository.set_draft(draft.changed(shards, images, operation), before=draft)

    def _open_all(self, shards: tuple[ShardRef, ...], opened: Callable[[str], Shard]) -> None:
        """Verify and open shards on all cores; ``opened`` keeps them."""
        if self._cores > 1:
            with ThreadPoolExecutor(self._cores) as pool:
                list(pool.map(opened, dict.fromkeys(ref.digest for ref in shards)))

    def _parent(self, job: Job) -> Current:
        parent = self._repository.current(job.model)
        check_change(job, parent, self._limits)
        return parent

    @contextlib.contextmanager
    def _parent_read(self, parent: Current) -> Iterator[None]:
        """Convert errors of reading ``parent`` to MODEL_CHANGED if it serves no longer.

        gc may then have deleted its files.
        """
        try:
            yield
        except (Corrupt, NotFound) as error:
            serving = self._repository.current(parent.model).revision
            if serving == parent.revision:
                raise
            raise NotReady(
                f"model {parent.model!r} serves revision {serving} by now, and {parent.revision} "
                f"cannot be read: {error}",
                reason="MODEL_CHANGED",
            ) from error

    def _solve(
        self,
        job: Job,
        result: ChangeResult,
        parent: Current,
        shards: tuple[ShardRef, ...],
        operation: str,
        opened: Callable[[str], Shard],
    ) -> Candidate:
        self._open_all(shards, opened)
        exemplars, sources = _read(shards, opened)
        before = None
        if isinstance(parent, Manifest):
            before = Judgement.of_shards(
                [(ref.label, opened(ref.digest)) for ref in parent.exemplars],
                self._repository.metrics(parent),
            )
        recipe = job.recipe or parent.recipe
        learned = learn(exemplars, seed=parent.seed, recipe=recipe, threads=self._cores)
        findings = (
            *(
                skipped_image(
                    image.name,
                    image.label or job.label,
                    reason=image.reason,
                    message=image.message,
                )
                for image in result.skipped
            ),
            *audit_exemplars(exemplars, learned.judged, seed=parent.seed, threads=self._cores),
        )
        comparison = None
        if before is None:
            failures = gate.check_first(learned.metrics, job.gate)
        else:
            comparison = gate.compare(
                before,
                Judgement.of(exemplars, learned.metrics),
                taught=taught_labels(job),
                renamed=renamed_labels(job),
            )
            failures = gate.check(comparison, job.gate)
        verdict = self._evaluator.verdict(
            job, parent, learned, exemplars, shards, opened, operation
        )
        failures += verdict.failures
        findings += verdict.findings
        if job.validate_only:
            dry = replace(
                result,
                comparison=comparison,
                gate_failures=failures,
                findings=findings,
                predicted=Predicted(labels=exemplars.labels, metrics=learned.metrics),
            )
            return Candidate(result=dry, published=False)
        # Without --spare-hours gc may have deleted a new shard meanwhile; it is still mapped.
        new = {
            self._repository.key("exemplars", ref.digest): ref.digest
            for ref in shards
            if ref not in parent.exemplars
        }
        for key in self._repository.storage.refresh(new):
            self._repository.put_shard(opened(new[key]))
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
            preview_pixels=parent.preview_pixels,
            origin=Origin(
                change=job.kind,
                parent=parent.revision,
                operation=operation,
                comparison=comparison,
                rejection=Rejection(gate=job.gate, failures=failures) if failures else None,
            ),
            making=Making(
                command=f"{describe(job, result.images_used)}, operation {operation}",
                findings=findings,
                notes=learned.notes,
            ),
            sources=sources,
        )
        self._evaluator.record(job, manifest, verdict, opened)
        return _candidate(manifest, result)


def _read(
    shards: tuple[ShardRef, ...], opened: Callable[[str], Shard]
) -> tuple[Exemplars, ShardRows]:
    """Return the exemplars of ``shards``, and their places in them."""
    parts = [(ref.label, opened(ref.digest)) for ref in shards]
    sources = shard_rows(parts)
    return merge(parts, sources), sources


def _candidate(manifest: Manifest, result: ChangeResult) -> Candidate:
    result = replace(result, revision=manifest.revision, comparison=manifest.comparison)
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
