"""Section of the report: the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.metrics import Metrics

FULL = 20
"""Number of labels up to which every cell is shown with its numbers."""
DEEPEST = 45
"""Percent of colour behind numbers; raising it makes them hard to read."""
PAIRS = 20
"""Number of most confused pairs in the list."""
GRID = 200
"""Largest number of cells per side of the compact picture."""
LEVELS = 5
"""Depths of colour in the compact picture: 1, 2 to 3, 4 to 7, 8 to 15, more images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Number of images with one true label and one predicted label."""

    images: int
    share: float
    """Share of the images of the true label."""
    heat: int
    """Depth of colour in percent, 0 to DEEPEST."""
    right: bool
    """True if the prediction is correct."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionRow:
    """A true label and one cell per predicted label, in label order."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Images of ``label`` that were predicted as ``predicted``."""

    label: str
    predicted: str
    images: int
    share: float
    """Share of the images of ``label``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compact:
    """Picture of the matrix: ``side`` x ``side`` cells, each of ``block`` x ``block`` labels."""

    side: int
    block: int
    levels: tuple[str, ...]
    """SVG paths of the cells with mistakes, a path per depth of colour, lightest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionMatrix:
    """Confusion matrix: a table up to FULL labels, a compact picture above."""

    wrong: int
    """Number of misclassified images."""
    rows: tuple[ConfusionRow, ...]
    """Rows of the table; empty above FULL labels."""
    pairs: tuple[Pair, ...]
    """Most confused pairs, most images first."""
    compact: Compact | None
    """None up to FULL labels."""


def lay_out(metrics: Metrics) -> ConfusionMatrix:
    """Return the confusion matrix in the form that suits its size."""
    counts = np.array(metrics.confusion, dtype=np.int64)
    wrong = counts - np.diag(np.diag(counts))
    small = len(counts) <= FULL
    return ConfusionMatrix(
        wrong=int(wrong.sum()),
        rows=_rows(metrics, wrong) if small else (),
        pairs=_pairs(metrics, wrong),
        compact=None if small else _compact(wrong),
    )


def _rows(metrics: Metrics, wrong: NDArray[np.int64]) -> tuple[ConfusionRow, ...]:
    """Return all rows. Colour of mistakes: square root of their share relative to the worst."""
    counts = np.array(metrics.confusion)
    images = np.maximum([[label.images] for label in metrics.per_label], 1)
    shares = counts / images
    worst = (wrong / images).max() or 1.0
    depths = np.where(wrong > 0, np.sqrt(shares / worst), shares)
    heats = (DEEPEST * depths).round().astype(np.int64)
    return tuple(
        ConfusionRow(
            label=label.label,
            cells=tuple(
                Cell(
                    images=int(counts[row, column]),
                    share=float(shares[row, column]),
                    heat=int(heats[row, column]),
                    right=row == column,
                )
                for column in range(len(counts))
            ),
        )
        for row, label in enumerate(metrics.per_label)
    )


def _pairs(metrics: Metrics, wrong: NDArray[np.int64]) -> tuple[Pair, ...]:
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    cells = [divmod(int(index), len(wrong)) for index in order]
    return tuple(
        Pair(
            label=metrics.per_label[row].label,
            predicted=metrics.per_label[column].label,
            images=int(wrong[row, column]),
            share=int(wrong[row, column]) / metrics.per_label[row].images,
        )
        for row, column in cells
        if wrong[row, column]
    )


def _compact(wrong: NDArray[np.int64]) -> Compact:
    block = -(-len(wrong) // GRID)
    side = -(-len(wrong) // block)
    starts = np.arange(side) * block
    cells = np.add.reduceat(np.add.reduceat(wrong, starts, axis=0), starts, axis=1)
    depth = np.minimum(np.log2(np.maximum(cells, 1)).astype(np.int64), LEVELS - 1)
    return Compact(
        side=side,
        block=block,
        levels=tuple(
            "".join(
                f"M{column} {row}h1v1h-1z"
                for row, column in np.argwhere((cells > 0) & (depth == level)).tolist()
            )
            for level in range(LEVELS)
        ),
    )
