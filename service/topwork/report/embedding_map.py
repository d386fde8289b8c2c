"""Section of the report: the embedding map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.report import placement
from topwork.report.content import Content, Places
from topwork.report.placement import Placed
from topwork.report.projection import project

POINTS = 2000
"""Largest number of images shown."""
COLOURED = 8
"""Number of labels with their own colour and shape: those with the most mistakes."""
NAMED = 20
"""Number of labels up to which all names are on the map; above, only those of coloured labels."""
WIDTH, HEIGHT, MARGIN = 640, 460, 24

SHAPES = (
    "m-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0",  # circle
    "m-2.4-2.4h4.8v4.8h-4.8z",  # square
    "m0-3.3l3.2 5.6h-6.4z",  # triangle
    "m0-3.7l3.3 3.7l-3.3 3.7l-3.3-3.7z",  # diamond
    "m0 3.3l3.2-5.6h-6.4z",  # triangle, point down
    "m-1.1-3.3h2.2v2.2h2.2v2.2h-2.2v2.2h-2.2v-2.2h-2.2v-2.2h2.2z",  # plus
    "m-3.6-1.5h7.2v3h-7.2z",  # horizontal bar
    "m-1.5-3.6h3v7.2h-3z",  # vertical bar
)
"""SVG paths of markers of about equal area, relative to the image's position."""
REST = "m-1.5 0a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0-3 0"
RING = "m-5.4 0a5.4 5.4 0 1 0 10.8 0a5.4 5.4 0 1 0-10.8 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The images of one label."""

    label: str
    style: int
    """Index of the colour and shape, 0 to COLOURED - 1; -1: the grey dots of all other labels."""
    shape: str
    """SVG path of one marker."""
    marks: str
    """SVG path of all markers of the layer."""
    images: int
    """Number of images, shown or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingMap:
    """Embedding map: layers from bottom to top."""

    width: int
    height: int
    layers: tuple[Layer, ...]
    """The coloured labels, in label order."""
    rest: Layer | None
    """All other labels."""
    wrong: str
    """SVG path of the rings around misclassified images."""
    names: tuple[Placed, ...]
    labels: int
    shown: int
    images: int
    share: float
    """See ``Projection.shown``."""


def locate(exemplars: Exemplars) -> Places:
    """Return the places of at most POINTS exemplars."""
    rows = pick(exemplars.targets, POINTS)
    projection = project(exemplars.embedding_rows[rows], exemplars.targets[rows])
    x, y = projection.places.T
    points = np.column_stack([_scale(x), _scale(-y)])
    return Places(rows=rows, points=points, share=projection.shown)


def lay_out(content: Content) -> EmbeddingMap:
    """Return the map of the images in ``content.places``."""
    exemplars, rows = content.exemplars, content.places.rows
    targets = exemplars.targets[rows]
    points = MARGIN + content.places.points * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)
    wrong = _wrong(content)
    coloured = _coloured(content, wrong)
    styles = {index: style for style, index in enumerate(coloured)}
    named = range(len(exemplars.labels)) if len(exemplars.labels) <= NAMED else coloured
    counts = exemplars.counts()
    others = ~np.isin(targets, coloured)
    return EmbeddingMap(
        width=WIDTH,
        height=HEIGHT,
        layers=tuple(
            Layer(
                label=exemplars.labels[index],
                style=style,
                shape=SHAPES[style],
                marks=_marks(points[targets == index], SHAPES[style]),
                images=int(counts[index]),
            )
            for index, style in styles.items()
        ),
        rest=Layer(
            label="",
            style=-1,
            shape=REST,
            marks=_marks(points[others], REST),
            images=int(counts.sum() - counts[coloured].sum()),
        )
        if others.any()
        else None,
        wrong=_marks(points[wrong[rows]], RING),
        names=placement.place(
            [
                (exemplars.labels[index], styles.get(index, -1), *_middle(points[targets == index]))
                for index in named
                if (targets == index).any()
            ],
            width=WIDTH,
            height=HEIGHT,
        ),
        labels=len(exemplars.labels),
        shown=len(rows),
        images=len(exemplars),
        share=content.places.share,
    )


def pick(targets: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return at most ``limit`` row indices, the first rows of each class, balanced by class."""
    rank = np.zeros(len(targets), dtype=np.int64)
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        rank[members] = np.arange(len(members))
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def _wrong(content: Content) -> NDArray[np.bool_]:
    """Return a mask (N,) of the misclassified exemplars."""
    judged = content.judged
    wrong = np.zeros(len(content.exemplars), dtype=bool)
    predicted = judged.probabilities.argmax(axis=1)
    wrong[judged.rows] = predicted != content.exemplars.targets[judged.rows]
    return wrong


def _coloured(content: Content, wrong: NDArray[np.bool_]) -> list[int]:
    """Return the indices of the coloured classes, in label order."""
    classes = len(content.exemplars.labels)
    mistakes = np.bincount(content.exemplars.targets[wrong], minlength=classes)
    return sorted(np.argsort(-mistakes, kind="stable")[:COLOURED].tolist())


def _scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale values to 0 to 1."""
    low, high = values.min(), values.max()
    return np.asarray((values - low) / max(high - low, 1e-12))


def _marks(points: NDArray[np.float64], shape: str) -> str:
    return "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in points.tolist())


def _middle(points: NDArray[np.float64]) -> tuple[float, float]:
    x, y = np.median(points, axis=0).tolist()
    return x, y
