"""Evaluation of a revision on labelled photos: its content, and its HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topwork.bundle.comparison import Comparison
from topwork.bundle.evaluation import Evaluation, UnknownDetection
from topwork.errors import ImageError
from topwork.inputs import text
from topwork.inputs.data.photos import Photo
from topwork.inputs.folders import LeftOut
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.thumbnail import SIDE, thumbnail
from topwork.learning.evaluation import Answers, is_known
from topwork.printable import encodable
from topwork.report import comparison, confusion, intervals, labels, reliability
from topwork.report.comparison import ComparisonSection
from topwork.report.intervals import Share
from topwork.report.mistakes import SHOWN, Mistakes, Picture
from topwork.report.page import environment
from topwork.report.previews import Preview, nouns

_THUMBNAIL = PreprocessSpec(resize=2 * SIDE, crop=2 * SIDE, deep_grey="percentiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Evaluation with the photos and answers that it was made from."""

    model: str
    photos: Sequence[Photo]
    """N inputs, with and without a label of the model."""
    kind: str = "image"
    """Kind of the inputs."""
    answers: Answers
    """Of the evaluated revision, to the photos in their order."""
    evaluation: Evaluation
    compared: Evaluation | None
    """Of the revision that it is compared with."""
    comparison: Comparison | None
    """Of the evaluated revision (after) with the other one (before)."""
    skipped: Sequence[tuple[str, str]]
    """Name of each photo that could not be used, with the reason."""
    left_out: Sequence[LeftOut]
    notes: Sequence[str]
    """Sentences about photos and labels that are not as the user may expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubgroupRow:
    """Accuracy of a subgroup, beside that of all other images of its column."""

    column: str
    value: str
    accuracy: Share
    ece: float
    false_rejects: float
    """Share of images that are called unknown; 0 if the model does not detect them."""
    verdict: str
    """``better``, ``worse`` or ``not significant``; see ``AccuracyChange``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """Rates of the detection of unknown images."""

    detected: Share | None
    """Of images of none of the classes; None without such images."""
    false_rejects: Share
    """Of images of the classes."""
    auroc: float | None


def render_evaluation(evaluated: Evaluated) -> str:
    """Return the page: self-contained HTML, like a revision's report. Reads misclassified photos.

    The same photos and answers give the same page.
    """
    result = evaluated.evaluation
    rows = subgroup_rows(result)
    page = (
        environment()
        .get_template("evaluation.html.jinja")
        .render(
            **nouns(evaluated.kind),
            evaluated=evaluated,
            metrics=result.metrics,
            revision=result.revision,
            cross_validated=False,
            labels=labels.table(result.metrics),
            comparison=compare(evaluated),
            confusion=confusion.lay_out(result.metrics),
            reliability=reliability.lay_out(result.metrics),
            uniform_loss=math.log(len(result.metrics.per_label)),
            subgroups=rows,
            subgroup_axis=intervals.axis(row.accuracy.low for row in rows),
            detection=None if result.unknown is None else detection(result.unknown),
            mistakes=_mistakes(evaluated),
        )
    )
    return encodable(page)


def compare(evaluated: Evaluated) -> ComparisonSection | None:
    """Return the section of the comparison with another revision, if there is one."""
    if evaluated.comparison is None or evaluated.compared is None:
        return None
    before = evaluated.compared.metrics
    return comparison.lay_out_paired(
        evaluated.comparison,
        revision=evaluated.compared.revision,
        before=before,
        old=tuple(row.label for row in before.per_label),
        new=evaluated.answers.labels,
    )


def subgroup_rows(result: Evaluation) -> tuple[SubgroupRow, ...]:
    """Return the subgroups, each beside the other images of its column."""
    images = result.metrics.images
    right = sum(row[index] for index, row in enumerate(result.metrics.confusion))
    found = []
    for group in result.subgroups:
        own = intervals.share(group.right, group.images)
        others = intervals.share(right - group.right, images - group.images)
        found.append(
            SubgroupRow(
                column=group.column,
                value=group.value,
                accuracy=own,
                ece=group.ece,
                false_rejects=(group.false_rejects or 0) / group.images,
                verdict=intervals.change(others, own).verdict,
            )
        )
    return tuple(found)


def detection(unknown: UnknownDetection) -> Detection:
    """Return the rates with their intervals."""
    return Detection(
        detected=intervals.share(unknown.detected, unknown.strangers)
        if unknown.strangers
        else None,
        false_rejects=intervals.share(unknown.false_rejects, unknown.known),
        auroc=unknown.auroc,
    )


def _mistakes(evaluated: Evaluated) -> Mistakes:
    """Return the misclassified photos of known labels with the highest confidence."""
    answers = evaluated.answers
    index_of = {label: index for index, label in enumerate(answers.labels)}
    targets = np.array([index_of.get(photo.label, -1) for photo in evaluated.photos])
    wrong = is_known(evaluated.photos, answers.labels)
    wrong &= answers.probabilities.argmax(axis=1) != targets
    order = np.argsort(-answers.probabilities.max(axis=1), kind="stable")
    places = order[wrong[order]].tolist()
    return Mistakes(
        suspected=(),
        others=tuple(_picture(evaluated, place, int(targets[place])) for place in places[:SHOWN]),
        suspected_images=0,
        other_images=len(places),
    )


def _picture(evaluated: Evaluated, place: int, target: int) -> Picture:
    photo, probabilities = evaluated.photos[place], evaluated.answers.probabilities[place]
    predicted = int(probabilities.argmax())
    return Picture(
        name=photo.name,
        preview=Preview(kind=evaluated.kind, content=_preview(photo, evaluated.kind)),
        label=photo.label,
        label_probability=float(probabilities[target]),
        predicted=evaluated.answers.labels[predicted],
        predicted_probability=float(probabilities[predicted]),
    )


def _preview(photo: Photo, kind: str) -> bytes:
    """Return a preview; empty if the input cannot be read any more, or not on this machine."""
    try:
        if kind == "text":
            return text.preview(photo.read())
        return thumbnail(preprocess(photo.read(), _THUMBNAIL)) if kind == "image" else b""
    except (OSError, ImageError):
        return b""
