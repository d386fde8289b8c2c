"""Confusion matrix section: all mistakes are shown at any number of labels."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle.metrics import Metrics, evaluate
from topwork.report import confusion


def test_small_matrices_have_all_cells() -> None:
    """Each cell has its count and its share of the row."""
    found = confusion.lay_out(_metrics(np.array([[3, 1], [0, 8]])))
    cells = [[(cell.images, cell.share, cell.right) for cell in row.cells] for row in found.rows]
    assert cells == [[(3, 0.75, True), (1, 0.25, False)], [(0, 0.0, False), (8, 1.0, True)]]
    assert found.compact is None
    assert found.wrong == 1


def test_numbers_stay_readable_on_colour() -> None:
    """The depth of colour is at most DEEPEST, and the worst mistake has that depth."""
    found = confusion.lay_out(_metrics(np.array([[5, 4, 1], [0, 9, 1], [0, 0, 10]])))
    heats = [[cell.heat for cell in row.cells] for row in found.rows]
    assert np.max(heats) == confusion.DEEPEST
    assert heats[0][1] == confusion.DEEPEST > heats[0][2] > 0


def test_pairs_are_the_most_frequent_mistakes() -> None:
    """Pairs are sorted by images, without correct predictions and empty cells."""
    found = confusion.lay_out(_metrics(np.array([[5, 4, 1], [7, 2, 1], [0, 0, 10]])))
    assert [(pair.label, pair.predicted, pair.images) for pair in found.pairs] == [
        ("1", "0", 7),
        ("0", "1", 4),
        ("0", "2", 1),
        ("1", "2", 1),
    ]
    assert found.pairs[0].share == pytest.approx(0.7)


@pytest.mark.parametrize(("labels", "side", "block"), [(21, 21, 1), (200, 200, 1), (401, 134, 3)])
def test_large_matrices_are_drawn_whole(labels: int, side: int, block: int) -> None:
    """The drawn cells are exactly the cells with mistakes."""
    rng = np.random.default_rng(labels)
    counts = np.eye(labels, dtype=np.int64) * 3
    np.add.at(counts, tuple(rng.integers(0, labels, (2, 5 * labels))), 1)
    found = confusion.lay_out(_metrics(counts)).compact
    assert found is not None
    assert (found.side, found.block) == (side, block)
    drawn = {
        (int(row), int(column))
        for level in found.levels
        for column, row in re.findall(r"M(\d+) (\d+)h", level)
    }
    mistakes = np.argwhere(counts - np.diag(np.diag(counts))) // block
    assert drawn == set(map(tuple, mistakes.tolist()))


def test_deeper_cells_have_more_mistakes() -> None:
    """The levels hold 1, 2 to 3, 4 to 7, 8 to 15 and more images."""
    counts = np.eye(30, dtype=np.int64)
    counts[0, 1:8] = 1, 2, 3, 7, 8, 15, 16
    found = confusion.lay_out(_metrics(counts)).compact
    assert found is not None
    assert [level.count("M") for level in found.levels] == [1, 2, 1, 2, 1]


def _metrics(counts: NDArray[np.int64]) -> Metrics:
    """Return the metrics of predictions with this confusion matrix."""
    pairs = np.argwhere(counts >= 0).repeat(counts.ravel(), axis=0)
    names = tuple(map(str, range(len(counts))))
    return evaluate(pairs[:, 0], np.eye(len(counts))[pairs[:, 1]], names, folds=5)
