"""The reliability diagram shows how far to believe the probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from topwork.bundle.metrics import Metrics, evaluate
from topwork.report import reliability


def test_a_bin_stands_at_its_probability_and_share() -> None:
    """A dot is as far right as its mean probability and as high as its share right."""
    (found,) = reliability.lay_out(_metrics(claimed=0.9, right=30, images=40)).bins
    assert (found.x, found.y) == (0.9 * reliability.SIDE, 0.25 * reliability.SIDE)
    assert found.y_high < found.y < found.y_low
    assert found.bar_x < found.x < found.bar_x + found.bar_width


def test_empty_bins_are_left_out() -> None:
    """No dot stands for bins without images."""
    assert len(reliability.lay_out(_metrics(claimed=0.9, right=9, images=10)).bins) == 1


@pytest.mark.parametrize(
    ("claimed", "tendency"), [(0.99, "too sure"), (0.8, ""), (0.82, ""), (0.6, "too modest")]
)
def test_the_tendency_is_more_than_noise(claimed: float, tendency: str) -> None:
    """It is too sure, or too modest, only if the accuracy's interval says so."""
    found = reliability.lay_out(_metrics(claimed=claimed, right=160, images=200))
    assert found.confidence == pytest.approx(claimed)
    assert found.tendency == tendency


def _metrics(*, claimed: float, right: int, images: int) -> Metrics:
    """Return the metrics of answers that all claim the same."""
    targets = (np.arange(images) >= right).astype(np.int64)
    probabilities = np.tile([claimed, 1 - claimed], (images, 1))
    return evaluate(targets, probabilities, ("a", "b"), folds=5)
