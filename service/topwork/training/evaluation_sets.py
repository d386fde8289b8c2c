"""Judgement of revisions on evaluation sets: the result of each set, and the verdict of gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.comparison import Comparison
from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.evaluation_sets import EmbeddedSet, EvaluationSet, EvaluationSets, SetImage
from topwork.bundle.findings import Finding, Severity
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.manifest import BackboneInfo, Manifest, ShardRef
from topwork.bundle.shards import Shard
from topwork.bundle.store import Repository
from topwork.errors import NotFound, NotReady
from topwork.inputs.data.photos import Photo
from topwork.inputs.image_source import ImageSource
from topwork.inputs.spec import InputSpec
from topwork.learning import gate
from topwork.learning.evaluation import (
    Answers,
    compare_answers,
    evaluate_answers,
    is_known,
    lacking_labels,
)
from topwork.learning.gate import NO_RENAMES
from topwork.learning.leakage import Prints, related_rows, repeated_rows
from topwork.learning.learn import Learned
from topwork.learning.unknown import is_unknown
from topwork.report.formatting import several
from topwork.runtime.backend import open_session
from topwork.training.backbone_session import EmbeddingSession
from topwork.training.embed import embed, stored_image

OpenBackbone = Callable[[BackboneInfo], EmbeddingSession]
"""Returns the session of a stored backbone on this machine, or of its twin."""

_Key = tuple[str, str]
"""Label, as it was stored, and sha256 of an image of a set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A revision, or a candidate, to judge."""

    revision: int
    """0: not published yet."""
    backbone: BackboneInfo
    labels: tuple[str, ...]
    head: bytes
    """head.onnx"""
    threshold: float | None
    """Unknown threshold; None: unknown images are not detected."""
    trained: tuple[tuple[str, Shard], ...]
    """Its exemplars, by label."""

    @classmethod
    def of(
        cls, repository: Repository, manifest: Manifest, opened: Callable[[str], Shard]
    ) -> Subject:
        """Return a published revision; ``opened`` returns a shard. Raises Corrupt."""
        return cls(
            revision=manifest.revision,
            backbone=repository.backbone(manifest),
            labels=manifest.labels,
            head=repository.head(manifest),
            threshold=manifest.chosen.unknown_threshold,
            trained=tuple((ref.label, opened(ref.digest)) for ref in manifest.exemplars),
        )

    @classmethod
    def candidate(
        cls,
        learned: Learned,
        labels: tuple[str, ...],
        backbone: BackboneInfo,
        trained: Sequence[tuple[str, Shard]],
    ) -> Subject:
        """Return a head that is not published."""
        unknown = learned.head.unknown
        return cls(
            revision=0,
            backbone=backbone,
            labels=labels,
            head=to_onnx(learned.head),
            threshold=None if unknown is None else unknown.threshold,
            trained=tuple(trained),
        )

    def answers(self, embeddings: NDArray[np.float32]) -> Answers:
        """Return the answers to images with these embeddings (N, D)."""
        session = open_session(self.head, output="probabilities")
        outputs = ["probabilities", *([] if self.threshold is None else ["unknown"])]
        probabilities, *unknown = session.run_outputs(embeddings, outputs)
        return Answers(
            revision=self.revision,
            labels=self.labels,
            probabilities=probabilities,
            unknown=unknown[0] if unknown else None,
            is_unknown=None
            if self.threshold is None
            else np.asarray(is_unknown(unknown[0], self.threshold)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Results of a candidate on all evaluation sets of its model."""

    results: tuple[EvaluationResult, ...] = ()
    failures: tuple[str, ...] = ()
    """A sentence with the numbers for each set whose gate rejects the candidate."""
    findings: tuple[Finding, ...] = ()
    """A note for each set, for the report."""


class SetJudge:
    """Judges revisions of one model on its evaluation sets."""

    def __init__(
        self, repository: Repository, model: str, open_backbone: OpenBackbone, *, cores: int
    ) -> None:
        self.sets = EvaluationSets(repository, model)
        self._repository = repository
        self._model = model
        self._open_backbone = open_backbone
        self._cores = cores

    def judge_all(
        self,
        after: Subject,
        before: Subject | None,
        *,
        renamed: Mapping[str, str] = NO_RENAMES,
        operation: str = "",
    ) -> Verdict:
        """Return the verdict on a candidate beside its parent; see ``judge``. Raises Corrupt.

        The gate of a set whose images are not stored rejects a candidate of another backbone,
        because it cannot judge it.
        """
        results, failures, findings = [], [], []
        for stored in self.sets.all():
            try:
                result = self.judge(stored, after, before, renamed=renamed, operation=operation)
            except NotFound:
                continue  # the set was deleted meanwhile
            except NotReady as error:
                failures += [] if stored.max_drop is None else [str(error)]
                findings.append(_finding(str(error), "warning"))
            else:
                results.append(result)
                failures += [result.failure] if result.failure else []
                severity: Severity = "warning" if result.repeated else "note"
                findings.append(_finding(sentence(result, stored.max_drop), severity))
        return Verdict(results=tuple(results), failures=tuple(failures), findings=tuple(findings))

    def record(self, verdict: Verdict, revision: int) -> None:
        """Store the results of a candidate that was published as ``revision``. Idempotent."""
        for result in verdict.results:
            evaluation = result.evaluation
            self.sets.put_result(
                replace(
                    result,
                    revision=revision,
                    evaluation=None
                    if evaluation is None
                    else replace(evaluation, revision=revision),
                )
            )

    def judge(
        self,
        stored: EvaluationSet,
        after: Subject,
        before: Subject | None = None,
        *,
        renamed: Mapping[str, str] = NO_RENAMES,
        operation: str = "",
    ) -> EvaluationResult:
        """Return the result of a revision on a set, stored or not, beside ``before``.

        ``renamed`` are the new names of labels in ``after``, by their name in ``before``. Raises
        NotReady if images must be embedded that are not stored, and Corrupt.
        """
        subjects = [after, *([] if before is None else [before])]
        for subject in subjects:
            stored = self.embedded(stored, subject.backbone)
        stored = stored.follow(renamed)
        rows = [_Rows.of(self._repository, stored, each.backbone.digest) for each in subjects]
        repeated, related = set[_Key](), set[_Key]()
        for subject, own in zip(subjects, rows, strict=True):
            prints = own.prints(stored, subject.labels)
            trained = Prints.of(subject.trained)
            repeated |= own.select(repeated_rows(prints, trained))
            related |= own.select(related_rows(prints, trained))
        used = [
            key
            for key in rows[0].keys
            if key not in repeated | related and all(key in other.places for other in rows)
        ]
        photos = [_photos(stored, used, subject.labels) for subject in subjects]
        answers = [
            subject.answers(own.embeddings[[own.places[key] for key in used]])
            for subject, own in zip(subjects, rows, strict=True)
            if used
        ]
        evaluation = comparison = None
        if is_known(photos[0], after.labels).any():
            evaluation = evaluate_answers(photos[0], answers[0])
            if before is not None and is_known(photos[1], before.labels).any():
                comparison = compare_answers(
                    photos[0], answers[1], answers[0], photos_before=photos[1]
                )
        return EvaluationResult(
            model=self._model,
            name=stored.name,
            made=stored.created,
            revision=after.revision,
            created=datetime.now(UTC),
            operation=operation,
            evaluation=evaluation,
            compared=0 if before is None else before.revision,
            comparison=comparison,
            repeated=len(repeated),
            related=len(related - repeated),
            lacking=lacking_labels(photos[0], after.labels),
            failure=_failure(stored, comparison),
        )

    def embedded(self, stored: EvaluationSet, info: BackboneInfo) -> EvaluationSet:
        """Return a set with its embeddings by a backbone, which it stores if they are new.

        Raises NotReady if images are not stored, NotFound if the set was deleted.
        """
        if stored.shards(info.digest) is not None:
            return stored
        kept = self._repository.stored_images([image.content for image in stored.images])
        lost = [image for image in stored.images if image.content not in kept]
        if lost:
            raise NotReady(
                f"the evaluation set {stored.name!r} cannot judge a revision of the backbone "
                f"{info.name} ({info.digest[:12]}): {several(len(lost), 'image')} of it "
                f"{'is' if len(lost) == 1 else 'are'} not stored, the first is {lost[0].name}; "
                "delete the set, and store it again with its images",
                reason="EVALUATION_SET_NOT_EMBEDDED",
            )
        sources = [
            ImageSource(
                name=image.name,
                label=image.label,
                read=partial(stored_image, self._repository, image.content),
            )
            for image in stored.images
        ]
        shards = self.embed(sources, self._open_backbone(info), info.preprocess)
        embedded = EmbeddedSet(backbone=info.digest, shards=shards)
        if not stored.name:
            return replace(stored, embedded=(*stored.embedded, embedded))
        return self.sets.embed(stored.name, embedded)

    def embed(
        self, sources: Sequence[ImageSource], session: EmbeddingSession, spec: InputSpec
    ) -> tuple[ShardRef, ...]:
        """Embed images, and store the shards of their labels."""
        exemplars, _ = embed(sources, session, spec, cores=self._cores)
        return () if exemplars is None else self._repository.put_exemplars(exemplars)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Images of a set, with their embeddings by one backbone."""

    parts: tuple[tuple[str, Shard], ...]
    """Shards, each with its label, as it was stored."""
    keys: tuple[_Key, ...]
    places: dict[_Key, int]

    @classmethod
    def of(cls, repository: Repository, stored: EvaluationSet, backbone: str) -> _Rows:
        parts = repository.shards(stored.shards(backbone) or ())
        known = {(image.label, image.content) for image in stored.images}
        keys = tuple(
            (label, content.tobytes().hex()) for label, shard in parts for content in shard.contents
        )
        places = {key: place for place, key in enumerate(keys) if key in known}
        return cls(parts=parts, keys=tuple(places), places=places)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """(N, D), in the order of the shards."""
        if not self.parts:
            return np.empty((0, 0), dtype=np.float32)
        return np.concatenate([shard.embeddings for _, shard in self.parts])

    def prints(self, stored: EvaluationSet, labels: Sequence[str]) -> Prints:
        """Return the prints, with the labels that they have in a revision with ``labels``."""
        return Prints.of([(stored.label_in(labels, label), shard) for label, shard in self.parts])

    def select(self, rows: NDArray[np.bool_]) -> set[_Key]:
        """Return the keys of the rows that the mask (N,) selects."""
        return {key for key, place in self.places.items() if rows[place]}


def set_images(
    parts: Sequence[tuple[str, Shard]], columns: Mapping[_Key, tuple[tuple[str, str], ...]]
) -> tuple[SetImage, ...]:
    """Return the images of shards, each with its label, for a new set.

    ``columns`` are the columns of an image by label and sha256.
    """
    return tuple(
        SetImage(name=name, label=label, content=content, columns=columns.get((label, content), ()))
        for label, shard in parts
        for name, content in zip(
            shard.names, (row.tobytes().hex() for row in shard.contents), strict=True
        )
    )


def sentence(result: EvaluationResult, max_drop: float | None = None) -> str:
    """Return a sentence with the numbers of a result, for people."""
    text = f"Evaluation set {result.name!r}: "
    compared = result.comparison
    if compared is not None and compared.images:
        text += (
            f"accuracy {100 * compared.accuracy_before:.1f} % in revision {result.compared}, "
            f"{100 * compared.accuracy_after:.1f} % now, on {several(compared.images, 'image')} of "
            f"{several(len(compared.labels), 'label')} (95 % interval of the drop "
            f"{100 * compared.drop_low:.1f} to {100 * compared.drop_high:.1f} points"
        )
        text += ")" if max_drop is None else f"; the limit is {100 * max_drop:.1f})"
    elif result.evaluation is not None:
        metrics = result.evaluation.metrics
        text += f"accuracy {100 * metrics.accuracy:.1f} % on {several(metrics.images, 'image')}"
    else:
        text += "no image of it can be judged"
    return text + "".join(f"; {part}" for part in left_out(result))


def left_out(result: EvaluationResult) -> Iterator[str]:
    """Yield the number of images that were not judged, by reason."""
    if result.repeated:
        yield f"{several(result.repeated, 'image')} left out: trained on, exactly or nearly"
    if result.related:
        yield f"{several(result.related, 'image')} left out: of groups that were trained on"
    if lacking := sum(result.lacking.values()):
        yield f"{several(lacking, 'image')} of labels that the revision lacks"


def _failure(stored: EvaluationSet, comparison: Comparison | None) -> str:
    if stored.max_drop is None or comparison is None:
        return ""
    on = (
        f"evaluation set {stored.name!r} ({several(comparison.images, 'image')} of "
        f"{several(len(comparison.labels), 'label')})"
    )
    return "".join(gate.check_drop(comparison, stored.max_drop, on=on))


def _photos(stored: EvaluationSet, keys: Sequence[_Key], labels: Sequence[str]) -> list[Photo]:
    """Return images of a set with the labels that they have in a revision with ``labels``."""
    images = {(image.label, image.content): image for image in stored.images}
    return [_photo(stored, images[key], labels) for key in keys]


def _photo(stored: EvaluationSet, image: SetImage, labels: Sequence[str]) -> Photo:
    label = stored.label_in(labels, image.label) if image.label else ""
    return Photo(name=image.name, label=label, read=bytes, columns=image.columns)


def _finding(text: str, severity: Severity) -> Finding:
    return Finding(kind="evaluation_set", severity=severity, message=text, images=(), labels=())
