"""Evaluation of a revision on labelled images, as a whole and by subgroup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.comparison import Comparison
from topwork.bundle.evaluation import Evaluation, Subgroup, UnknownDetection
from topwork.bundle.metrics import evaluate
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Photo
from topwork.learning import gate
from topwork.learning.unknown import auroc

SUBGROUP_VALUES = 20
"""Raising it makes subgroups of columns with more different values, and longer tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers of one revision to N images."""

    revision: int
    labels: tuple[str, ...]
    """Labels of the revision, sorted by code point."""
    probabilities: NDArray[np.float32]
    """(N, C)"""
    unknown: NDArray[np.float32] | None
    """(N,), unknown probabilities; None if the revision does not detect unknown images."""
    is_unknown: NDArray[np.bool_] | None
    """(N,), True for the images that the revision calls unknown."""

    def where(self, rows: NDArray[np.bool_]) -> Answers:
        """Return the answers to the images of the mask ``rows`` (N,)."""
        return Answers(
            revision=self.revision,
            labels=self.labels,
            probabilities=self.probabilities[rows],
            unknown=None if self.unknown is None else self.unknown[rows],
            is_unknown=None if self.is_unknown is None else self.is_unknown[rows],
        )


def is_known(photos: Sequence[Photo], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return True for each photo (N,) whose label is one of the labels."""
    return np.array([photo.label in labels for photo in photos], dtype=bool)


def evaluate_answers(photos: Sequence[Photo], answers: Answers) -> Evaluation:
    """Return the evaluation of the answers to N photos, in their order.

    Photos whose label the revision lacks count as unknown images. Raises InvalidInput if all do.
    """
    known = is_known(photos, answers.labels)
    if not known.any():
        raise InvalidInput(
            f"no photo has a label of revision {answers.revision}, whose labels are "
            f"{_few(answers.labels)}; the labels of the photos are "
            f"{_few(sorted({photo.label for photo in photos if photo.label}))}",
            field="data",
        )
    own = answers.where(known)
    targets = _targets(photos, own.labels)
    return Evaluation(
        revision=answers.revision,
        metrics=evaluate(targets, own.probabilities, own.labels, folds=0),
        unknown=_unknown(answers, known),
        subgroups=_subgroups([photo for photo in photos if photo.label in own.labels], own),
    )


def compare_answers(
    photos: Sequence[Photo],
    before: Answers,
    after: Answers,
    *,
    photos_before: Sequence[Photo] | None = None,
) -> Comparison:
    """Return the paired comparison of two revisions, as the gate makes it.

    It uses the photos whose label both revisions have; each predicts any of its own labels.
    ``photos_before`` are the photos with the labels that they have in ``before``; None: the same.
    """
    earlier = photos if photos_before is None else photos_before
    return gate.compare(
        _judgement(earlier, before),
        _judgement(photos, after),
        renamed={old.label: new.label for old, new in zip(earlier, photos, strict=True)},
    )


def subgroup_columns(photos: Sequence[Photo]) -> tuple[list[str], list[str]]:
    """Return the columns with 2 to SUBGROUP_VALUES different values, and those with more."""
    values: dict[str, set[str]] = {}
    for photo in photos:
        for column, value in photo.columns:
            values.setdefault(column, set()).add(value)
    return (
        [column for column, found in values.items() if 2 <= len(found) <= SUBGROUP_VALUES],
        [column for column, found in values.items() if len(found) > SUBGROUP_VALUES],
    )


def lacking_labels(photos: Sequence[Photo], labels: Sequence[str]) -> dict[str, int]:
    """Return the number of photos of each label that ``labels`` lacks; strangers have none."""
    counts = Counter(photo.label for photo in photos if photo.label)
    return {label: counts[label] for label in sorted(counts.keys() - set(labels))}


def _targets(photos: Sequence[Photo], labels: Sequence[str]) -> NDArray[np.int64]:
    """Return the class index of each photo whose label is one of the labels."""
    index_of = {label: index for index, label in enumerate(labels)}
    targets = [index_of[photo.label] for photo in photos if photo.label in index_of]
    return np.array(targets, dtype=np.int64)


def _unknown(answers: Answers, known: NDArray[np.bool_]) -> UnknownDetection | None:
    if answers.unknown is None or answers.is_unknown is None:
        return None
    return UnknownDetection(
        known=int(known.sum()),
        false_rejects=int(answers.is_unknown[known].sum()),
        strangers=int((~known).sum()),
        detected=int(answers.is_unknown[~known].sum()),
        auroc=None if known.all() else auroc(answers.unknown[known], answers.unknown[~known]),
    )


def _subgroups(photos: Sequence[Photo], answers: Answers) -> tuple[Subgroup, ...]:
    targets = _targets(photos, answers.labels)
    found = []
    for column in subgroup_columns(photos)[0]:
        values = np.array([dict(photo.columns).get(column, "") for photo in photos])
        for value in sorted(set(values.tolist())):
            rows = values == value
            own = answers.where(rows)
            metrics = evaluate(targets[rows], own.probabilities, own.labels, folds=0)
            right = own.probabilities.argmax(axis=1) == targets[rows]
            found.append(
                Subgroup(
                    column=column,
                    value=value,
                    images=metrics.images,
                    right=int(right.sum()),
                    ece=metrics.ece,
                    false_rejects=None if own.is_unknown is None else int(own.is_unknown.sum()),
                )
            )
    return tuple(found)


def _judgement(photos: Sequence[Photo], answers: Answers) -> gate.Judgement:
    """Return the judgement of the photos with a label of the revision, numbered by position."""
    known = is_known(photos, answers.labels)
    numbers = np.flatnonzero(known).astype(">u8")
    digests = np.zeros((len(numbers), 32), dtype=np.uint8)
    digests[:, -8:] = numbers[:, None].view(np.uint8)
    targets = _targets(photos, answers.labels)
    probabilities = answers.probabilities[known]
    return gate.Judgement(
        digests=digests,
        targets=targets,
        right=probabilities.argmax(axis=1) == targets,
        labels=answers.labels,
        metrics=evaluate(targets, probabilities, answers.labels, folds=0),
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:10], *(["..."] if len(names) > 10 else [])]) or "none"
