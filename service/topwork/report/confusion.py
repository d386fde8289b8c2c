"""Section of the report: the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.metrics import Metrics

FULL = 20
"""Labels up to which every cell is shown with its numbers."""
DEEPEST = 45
"""Percent of colour behind numbers: on more of it they would be hard to read."""
PAIRS = 20
"""The most confused pairs that are listed."""
GRID = 200
"""Cells a side of the compact picture at most."""
LEVELS = 5
"""Depths of colour in the compact picture: 1, 2 to 3, 4 to 7, 8 to 15, more images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Images of one label that were called another one, or itself."""

    images: int
    share: float
    """Of the images of its row's label."""
    heat: int
    """Depth of colour in percent, 0 to DEEPEST."""
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionRow:
    """A label, and what its images were called, in label order."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Images of ``label`` that were called ``called``."""

    label: str
    called: str
    images: int
    share: float
    """Of the images of ``label``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compact:
    """The whole matrix as a picture of ``side`` x ``side`` cells, each of ``block`` labels."""

    side: int
    block: int
    levels: tuple[str, ...]
    """SVG paths of the cells with wrong answers, one a depth of colour, lightest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfusionMatrix:
    """The confusion matrix in the form that suits its size."""

    wrong: int
    """Images that were called something else than they are."""
    rows: tuple[ConfusionRow, ...]
    """All of it; empty above FULL labels."""
    pairs: tuple[Pair, ...]
    """The most confused pairs, most images first."""
    compact: Compact | None
    """None up to FULL labels."""


def lay_out(metrics: Metrics) -> ConfusionMatrix:
    """Return the confusion matrix as it is shown."""
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
    """Return all rows. Mistakes are as deep as the square root of their share of the worst one."""
    counts = np.array(metrics.confusion)
    images = np.maximum([[one.images] for one in metrics.per_label], 1)
    shares = counts / images
    worst = (wrong / images).max() or 1.0
    depths = np.where(wrong > 0, np.sqrt(shares / worst), shares)
    heats = (DEEPEST * depths).round().astype(np.int64)
    return tuple(
        ConfusionRow(
            label=one.label,
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
        for row, one in enumerate(metrics.per_label)
    )


def _pairs(metrics: Metrics, wrong: NDArray[np.int64]) -> tuple[Pair, ...]:
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    found = [divmod(int(place), len(wrong)) for place in order]
    return tuple(
        Pair(
            label=metrics.per_label[row].label,
            called=metrics.per_label[column].label,
            images=int(wrong[row, column]),
            share=int(wrong[row, column]) / metrics.per_label[row].images,
        )
        for row, column in found
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
