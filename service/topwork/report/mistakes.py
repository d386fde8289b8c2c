"""Section of the report: suspected labels and misclassified images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topwork.report.content import Content

SHOWN = 24
"""Images of a kind at most."""

SUSPECTED = {"suspected_label", "suspected_labels"}
"""Kinds of the findings whose images may bear a wrong label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image and what the model made of it without having seen it."""

    name: str
    thumbnail: str
    """A data: URI; empty where there is no picture."""
    label: str
    label_probability: float
    """Of the label that it bears."""
    called: str
    called_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistakes:
    """Images that may bear a wrong label, or that were called something else than theirs."""

    suspected: tuple[Picture, ...]
    """Those that the audit suspects, in its order: the clearest first."""
    others: tuple[Picture, ...]
    """Those called wrong, most confident first, without those above."""
    suspected_images: int
    """How many there are in all."""
    other_images: int


def gather(content: Content) -> Mistakes:
    """Return at most SHOWN suspected labels, and as many of the most confident mistakes."""
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
        suspected=_pictures(content, suspected[:SHOWN]),
        others=_pictures(content, others[:SHOWN]),
        suspected_images=len(suspected),
        other_images=len(others),
    )


def _pictures(content: Content, places: Sequence[int]) -> tuple[Picture, ...]:
    exemplars, judged = content.exemplars, content.judged
    pictures = []
    for place in places:
        row, probabilities = int(judged.rows[place]), judged.probabilities[place]
        target, called = int(exemplars.targets[row]), int(probabilities.argmax())
        jpeg = exemplars.thumbnails[row]
        pictures.append(
            Picture(
                name=exemplars.names[row],
                thumbnail=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" * bool(jpeg),
                label=exemplars.labels[target],
                label_probability=float(probabilities[target]),
                called=exemplars.labels[called],
                called_probability=float(probabilities[called]),
            )
        )
    return tuple(pictures)
