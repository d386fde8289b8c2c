"""Verdict of the model's evaluation sets on a fit, beside the revision that serves."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.manifest import BackboneInfo, ShardRef
from topwork.bundle.store import Repository
from topwork.errors import NotFound, NotReady
from topwork.runtime.cores import available_cores
from topwork.training.backbone_session import EmbeddingSession, open_backbone_session
from topwork.training.evaluation_sets import SetJudge, Subject, Verdict
from topwork.training.publish import FIT, Origin
from topwork_trainer.fit.attempts import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFit:
    """An attempt whose exemplars are stored, and its verdict."""

    model: str
    shards: tuple[ShardRef, ...]
    verdict: Verdict
    judge: SetJudge

    @classmethod
    def of(cls, repository: Repository, model: str, attempt: Attempt) -> JudgedFit:
        """Store the exemplars of an attempt, and judge it on the sets of the model."""

        def opened(info: BackboneInfo) -> EmbeddingSession:
            return open_backbone_session(repository, info).session

        shards = repository.put_exemplars(attempt.exemplars)
        judge = SetJudge(repository, model, opened, cores=available_cores())
        verdict = Verdict()
        if judge.sets.names():
            after = Subject.candidate(
                attempt.learned,
                attempt.exemplars.labels,
                attempt.backbone,
                repository.shards(shards),
            )
            verdict = judge.judge_all(after, _serving(repository, model))
        return cls(model=model, shards=shards, verdict=verdict, judge=judge)

    @property
    def origin(self) -> Origin:
        """Provenance of the revision."""
        if not self.verdict.failures:
            return FIT
        return Origin(rejection=Rejection(gate=Gate(), failures=self.verdict.failures))

    def record(self, revision: int) -> None:
        """Store the results of the published revision. Raises NotReady if it was rejected."""
        self.judge.record(self.verdict, revision)
        if self.verdict.failures:
            raise NotReady(
                f"revision {revision} of {self.model!r} was published as rejected, and does not "
                f"serve: {'; '.join(self.verdict.failures)}",
                reason="GATE_FAILED",
            )


def _serving(repository: Repository, model: str) -> Subject | None:
    try:
        manifest = repository.manifest(model, repository.serving(model))
    except NotFound:
        return None
    return Subject.of(repository, manifest, repository.shard)
