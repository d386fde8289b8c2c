"""How a class is added: embed the new images, re-solve the head on all exemplars, publish.

Each function is idempotent, so that a step that was cut off can be run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from topwork.bundle.findings import left_out
from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.store import Repository
from topwork.engine.backend import Session, open_session
from topwork.engine.embed import Source, embed
from topwork.engine.jobs import AddClassJob, AddClassResult, SkippedUpload, StageSeconds
from topwork.engine.solve import solve
from topwork.errors import AlreadyExists, NotReady
from topwork.report.content import Making


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExemplars:
    """The exemplars of a new class, and what was left out."""

    shard: str
    """Digest of their shard."""
    backbone: str
    """Digest of the backbone that embedded them."""
    images: int
    skipped: tuple[SkippedUpload, ...]


class Trainer:
    """Adds classes to the models of one repository. Keeps loaded backbones for the next time."""

    def __init__(
        self, repository: Repository, *, cores: int, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._repository = repository
        self._cores = cores
        self._limits = limits
        self._sessions: dict[str, Session] = {}

    def embed(self, job: AddClassJob, on_image: Callable[[int, int], None]) -> NewExemplars:
        """Embed the uploads with the serving revision's backbone and store their exemplars.

        ``on_image`` is called with images done and in all. Raises NotReady if fewer than the
        minimum are usable; its message names the skipped ones.
        """
        manifest = self._repository.manifest(job.model, self._repository.serving(job.model))
        info = self._repository.backbone(manifest)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            on_image(done, len(job.uploads))

        exemplars, skipped = embed(
            [
                Source(
                    name=upload.name,
                    label=job.label,
                    read=lambda digest=upload.digest: self._repository.image(digest),  # type: ignore[misc]  # mypy cannot infer a lambda's default
                )
                for upload in job.uploads
            ],
            self._session(manifest, info),
            info.preprocess,
            cores=self._cores,
            limits=self._limits,
            on_image=count,
        )
        all_skipped = job.refused + tuple(
            SkippedUpload(name=one.name, reason=one.reason, message=one.message) for one in skipped
        )
        usable = len(exemplars) if exemplars is not None else 0
        if exemplars is None or usable < self._limits.min_images_per_label:
            raise NotReady(
                _too_few(job, usable, all_skipped, self._limits), reason="TOO_FEW_IMAGES"
            )
        return NewExemplars(
            shard=self._repository.put_exemplars(exemplars),
            backbone=info.digest,
            images=usable,
            skipped=all_skipped,
        )

    def result(self, job: AddClassJob, new: NewExemplars, manifest: Manifest) -> AddClassResult:
        """Return what the published revision ``manifest`` is, beside its parent; seconds are 0."""
        metrics = self._repository.metrics(manifest)
        parent = self._repository.manifest(job.model, manifest.parent)
        return AddClassResult(
            revision=manifest.revision,
            images_used=new.images,
            skipped=new.skipped,
            old_labels_accuracy_before=self._repository.metrics(parent).accuracy,
            old_labels_accuracy_after=metrics.accuracy_on(parent.labels),
            new_label_recall=next(
                one.recall for one in metrics.per_label if one.label == job.label
            ),
            seconds=StageSeconds(),
        )

    def solve(self, job: AddClassJob, new: NewExemplars, operation: str) -> Manifest:
        """Solve and publish the revision with the new class; it does not serve yet.

        Raises AlreadyExists if the model has the label by now, NotReady if a fit gave it another
        backbone meanwhile.
        """
        # The shard, too: an id whose operation was deleted may come again with other images.
        published = self._repository.find(
            job.model, lambda one: one.operation == operation and new.shard in one.exemplars
        )
        if published is not None:
            return published
        parent = self._repository.manifest(job.model, self._repository.serving(job.model))
        if job.label in parent.labels:
            raise AlreadyExists(
                f"model {job.model!r} has a label {job.label!r} already",
                kind="label",
                resource=job.label,
                reason="LABEL_EXISTS",
            )
        if len(parent.labels) >= self._limits.max_labels:
            raise too_many_labels(job.model, len(parent.labels), self._limits)
        if parent.backbone != new.backbone:
            raise NotReady(
                f"model {job.model!r} was fitted on another backbone meanwhile; call again",
                reason="BACKBONE_CHANGED",
            )
        return solve(
            self._repository,
            model=job.model,
            backbone=parent.backbone,
            shards=(*parent.exemplars, new.shard),
            seed=parent.seed,
            recipe=parent.recipe,
            making=Making(
                command=f"AddClass {job.label!r} ({new.images} images), operation {operation}",
                findings=tuple(
                    left_out(one.name, job.label, reason=one.reason, message=one.message)
                    for one in new.skipped
                ),
            ),
            parent=parent.revision,
            operation=operation,
            threads=self._cores,
        )

    def serve(self, model: str, revision: int) -> None:
        """Let ``revision`` serve. Raises NotReady if meanwhile another one than its parent does."""
        manifest = self._repository.manifest(model, revision)
        serving = self._repository.set_serving(model, revision, parent=manifest.parent)
        if serving != revision:
            raise NotReady(
                f"model {model!r} serves revision {serving} by now, and revision {revision} was "
                f"made from {manifest.parent}; call again",
                reason="MODEL_CHANGED",
            )

    def _session(self, manifest: Manifest, info: BackboneInfo) -> Session:
        if info.digest not in self._sessions:
            self._sessions[info.digest] = open_session(
                self._repository.backbone_model(manifest.backbone), output="embedding"
            )
        return self._sessions[info.digest]


def too_many_labels(model: str, labels: int, limits: Limits) -> NotReady:
    """Return the error of a model that may not have another label."""
    return NotReady(
        f"model {model!r} has {labels} labels; the limit is {limits.max_labels}",
        reason="TOO_MANY_LABELS",
    )


def _too_few(
    job: AddClassJob, usable: int, skipped: tuple[SkippedUpload, ...], limits: Limits
) -> str:
    text = (
        f"label {job.label!r} has {usable} usable images; "
        f"at least {limits.min_images_per_label} are needed"
    )
    if skipped:
        named = "; ".join(f"{one.name}: {one.message}" for one in skipped[:5])
        text += f" ({len(skipped)} skipped: {named}{'; ...' if len(skipped) > 5 else ''})"
    return text
