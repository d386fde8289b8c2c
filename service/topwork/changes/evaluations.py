"""Evaluation as an operation: the steps of Evaluate, and the verdict of gates on a change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

from topwork.bundle.draft import Current, Draft
from topwork.bundle.evaluation_sets import EmbeddedSet, EvaluationSet, EvaluationSets
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import Manifest, ShardRef, check_may_serve
from topwork.bundle.shards import Shard
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeResult, EvaluationJob, Job
from topwork.changes.kinds import renamed_labels
from topwork.changes.new_exemplars import Embedder, NewExemplars, OnImage
from topwork.errors import NotFound, NotReady
from topwork.learning.learn import Learned
from topwork.training.evaluation_sets import SetJudge, Subject, Verdict, set_images

Opened = Callable[[str], Shard]
"""Returns the shard of a digest."""


def check_evaluation(repository: Repository, job: Job, operation: str, *, complete: bool) -> None:
    """Raise an error if an evaluation cannot be done; ``complete``: all images are in the job.

    NotFound for a missing revision, or a set that is to be read, NotReady for a rejected revision,
    AlreadyExists if another operation stored a set of the name, InvalidInput for a limit of a
    stored set.
    """
    wanted = _evaluation(job)
    for revision in (wanted.revision, wanted.compare):
        if revision:
            check_may_serve(repository.manifest(job.model, revision))
    sets = EvaluationSets(repository, job.model)
    if wanted.name and (job.uploads or job.refused or (wanted.max_drop is not None)):
        sets.check_free(wanted.name, operation)
    if wanted.name and complete and not (job.uploads or job.refused):
        sets.get(wanted.name)


class Evaluator:
    """Steps of evaluations in one repository. Each is idempotent."""

    def __init__(self, repository: Repository, embedder: Embedder, *, cores: int) -> None:
        self._repository = repository
        self._embedder = embedder
        self._cores = cores

    def embed(self, job: Job, on_image: OnImage) -> NewExemplars:
        """Embed the uploads with the backbone of the revision that is evaluated.

        Raises NotFound, and NotReady if the revision was rejected or no image is usable.
        """
        manifest = self._manifest(job, _evaluation(job).revision)
        embedded, skipped = self._embedder.embed_uploads(job, manifest, on_image)
        if not embedded and skipped:
            first = skipped[0]
            raise NotReady(
                f"no image can be evaluated; {first.name}: {first.message}", reason="TOO_FEW_IMAGES"
            )
        return NewExemplars(
            shards={label: self._repository.put_shard(shard) for label, shard in embedded},
            backbone=manifest.backbone,
            images=sum(len(shard) for _, shard in embedded),
            skipped=tuple(skipped),
            conflicts=(),
        )

    def judge(self, job: Job, new: NewExemplars, operation: str) -> ChangeResult:
        """Evaluate the revision, and store the set and the result if the set has a name.

        Raises NotFound, NotReady (BACKBONE_CHANGED if another backbone serves since the embed
        step), AlreadyExists.
        """
        wanted = _evaluation(job)
        manifest = self._manifest(job, wanted.revision)
        if manifest.backbone != new.backbone:
            raise NotReady(
                f"model {job.model!r} serves a revision of another backbone by now",
                reason="BACKBONE_CHANGED",
            )
        judge = self._judge(job.model)
        if new.shards:
            stored = self._new_set(job, new, operation)
            if wanted.name:
                stored = judge.sets.create(stored)
        else:
            stored = judge.sets.get(wanted.name)
        before = self._compared(job, manifest)
        opened = self._repository.shard
        result = judge.judge(
            stored,
            Subject.of(self._repository, manifest, opened),
            None if before is None else Subject.of(self._repository, before, opened),
            operation=operation,
        )
        if wanted.name:
            judge.sets.put_result(result)
        return ChangeResult(images_used=new.images, skipped=new.skipped, evaluation=result)

    def verdict(
        self,
        job: Job,
        parent: Current,
        learned: Learned,
        exemplars: Exemplars,
        shards: tuple[ShardRef, ...],
        opened: Opened,
        operation: str,
    ) -> Verdict:
        """Return the verdict of the model's evaluation sets on a candidate of a change."""
        judge = self._judge(job.model)
        if isinstance(parent, Draft) or not judge.sets.names():
            return Verdict()
        after = Subject.candidate(
            learned,
            exemplars.labels,
            self._repository.backbone(parent),
            [(ref.label, opened(ref.digest)) for ref in shards],
        )
        before = Subject.of(self._repository, parent, opened)
        return judge.judge_all(after, before, renamed=renamed_labels(job), operation=operation)

    def record(self, job: Job, manifest: Manifest, verdict: Verdict | None, opened: Opened) -> None:
        """Store the results of a published candidate; ``verdict`` None: those that are missing."""
        judge = self._judge(manifest.model)
        if verdict is None and manifest.parent and judge.sets.lacks_result(manifest.revision):
            with contextlib.suppress(NotFound):  # the parent was deleted since
                parent = self._repository.manifest(manifest.model, manifest.parent)
                verdict = judge.judge_all(
                    Subject.of(self._repository, manifest, opened),
                    Subject.of(self._repository, parent, opened),
                    renamed=renamed_labels(job),
                    operation=manifest.operation,
                )
        if verdict is not None:
            judge.record(verdict, manifest.revision)

    def _judge(self, model: str) -> SetJudge:
        return SetJudge(self._repository, model, self._embedder.session, cores=self._cores)

    def _manifest(self, job: Job, revision: int) -> Manifest:
        """Return a revision that may serve; 0: the serving one. Raises NotFound, NotReady."""
        number = revision or self._repository.serving(job.model)
        manifest = self._repository.manifest(job.model, number)
        check_may_serve(manifest)
        return manifest

    def _compared(self, job: Job, manifest: Manifest) -> Manifest | None:
        """Return the revision to compare with.

        That of a set is the parent by default, if it exists and has the same backbone.
        """
        wanted = _evaluation(job)
        if wanted.compare:
            return self._manifest(job, wanted.compare)
        if wanted.name and manifest.parent:
            with contextlib.suppress(NotFound):
                parent = self._repository.manifest(job.model, manifest.parent)
                return parent if parent.backbone == manifest.backbone else None
        return None

    def _new_set(self, job: Job, new: NewExemplars, operation: str) -> EvaluationSet:
        """Return the set of the images that could be embedded."""
        wanted = _evaluation(job)
        parts = [(label, self._repository.shard(shard)) for label, shard in new.shards.items()]
        columns = {(upload.label, upload.digest): upload.columns for upload in job.uploads}
        return EvaluationSet(
            model=job.model,
            name=wanted.name,
            created=datetime.fromtimestamp(job.accepted, UTC),
            operation=operation,
            max_drop=wanted.max_drop,
            images=set_images(parts, columns),
            embedded=(
                EmbeddedSet(
                    backbone=new.backbone,
                    shards=tuple(
                        ShardRef(label=label, digest=digest)
                        for label, digest in sorted(new.shards.items())
                    ),
                ),
            ),
        )


def _evaluation(job: Job) -> EvaluationJob:
    assert job.evaluation is not None, "only of evaluations"
    return job.evaluation
