"""Section of the report: suspected labels and misclassified images."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from topwork.inputs.kinds import kind_of
from topwork.report.content import Content
from topwork.report.previews import Preview

SHOWN = 24
"""Largest number of images in each list."""

SUSPECTED = {"suspected_label", "suspected_labels"}
"""Kinds of findings that report suspected label errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Image with its cross-validated prediction."""

    name: str
    preview: Preview
    label: str
    label_probability: float
    """Predicted probability of ``label``."""
    predicted: str
    predicted_probability: float
    commands: tuple[str, ...] = ()
    """Commands that correct a suspected label error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """Suspected label errors and other misclassified images."""

    suspected: tuple[Picture, ...]
    """Suspected label errors, in the order of the audit: the clearest first."""
    others: tuple[Picture, ...]
    """Other misclassified images, highest confidence first."""
    suspected_images: int
    """Number of suspected label errors, shown or not."""
    other_images: int


def gather(content: Content) -> Mistakes:
    """Return at most SHOWN suspected label errors and SHOWN other misclassified images."""
    judged, exemplars = content.judged, content.exemplars
    places: dict[str, list[int]] = {}
    for place, row in enumerate(judged.rows.tolist()):
        places.setdefault(exemplars.names[row], []).append(place)
    named = [
        name
        for finding in content.making.findings
        if finding.kind in SUSPECTED
        for name in finding.images
        if name
    ]
    suspected = [place for name in dict.fromkeys(named) for place in places.get(name, ())]
    wrong = judged.probabilities.argmax(axis=1) != exemplars.targets[judged.rows]
    wrong[suspected[:SHOWN]] = False
    order = np.argsort(-judged.probabilities.max(axis=1), kind="stable")
    others = order[wrong[order]].tolist()
    return Mistakes(
        suspected=tuple(
            replace(image, commands=_commands(content, place, image.predicted))
            for place, image in zip(
                suspected[:SHOWN], _pictures(content, suspected[:SHOWN]), strict=True
            )
        ),
        others=_pictures(content, others[:SHOWN]),
        suspected_images=len(suspected),
        other_images=len(others),
    )


def _commands(content: Content, place: int, predicted: str) -> tuple[str, ...]:
    """Return the commands that move or remove a suspected example of the served model."""
    digest = content.exemplars.digests[content.judged.rows[place]].tobytes().hex()
    subject = f"{content.manifest.model} {digest}"
    return (
        f"topwork examples move {subject} --to {shlex.quote(predicted)}",
        f"topwork examples remove {subject}",
    )


def _pictures(content: Content, places: Sequence[int]) -> tuple[Picture, ...]:
    exemplars, judged = content.exemplars, content.judged
    kind = kind_of(content.backbone.preprocess).name
    pictures = []
    for place in places:
        row, probabilities = int(judged.rows[place]), judged.probabilities[place]
        target, predicted = int(exemplars.targets[row]), int(probabilities.argmax())
        pictures.append(
            Picture(
                name=exemplars.names[row],
                preview=Preview(kind=kind, content=exemplars.thumbnails[row]),
                label=exemplars.labels[target],
                label_probability=float(probabilities[target]),
                predicted=exemplars.labels[predicted],
                predicted_probability=float(probabilities[predicted]),
            )
        )
    return tuple(pictures)
