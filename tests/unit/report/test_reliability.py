"""Calibration section: positions in the reliability diagram, and over- or underconfidence."""

from __future__ import annotations

import numpy as np
import pytest

from topwork.bundle.metrics import Metrics, evaluate
from topwork.report import reliability


def test_bin_position_is_confidence_and_accuracy() -> None:
    """A dot's x is the bin's mean probability, its y the bin's accuracy."""
    (found,) = reliability.lay_out(_metrics(confidence=0.9, right=30, images=40)).bins
    assert (found.x, found.y) == (0.9 * reliability.SIDE, 0.25 * reliability.SIDE)
    assert found.y_high < found.y < found.y_low
    assert found.bar_x < found.x < found.bar_x + found.bar_width


def test_empty_bins_are_left_out() -> None:
    """A bin without images has no dot."""
    assert len(reliability.lay_out(_metrics(confidence=0.9, right=9, images=10)).bins) == 1


@pytest.mark.parametrize(
    ("confidence", "tendency"),
    [(0.99, "overconfident"), (0.8, ""), (0.82, ""), (0.6, "underconfident")],
)
def test_tendency_needs_a_significant_difference(confidence: float, tendency: str) -> None:
    """The model is over- or underconfident only outside the accuracy's interval."""
    found = reliability.lay_out(_metrics(confidence=confidence, right=160, images=200))
    assert found.confidence == pytest.approx(confidence)
    assert found.tendency == tendency


def _metrics(*, confidence: float, right: int, images: int) -> Metrics:
    """Return the metrics of predictions with the same confidence, ``right`` of them correct."""
    targets = (np.arange(images) >= right).astype(np.int64)
    probabilities = np.tile([confidence, 1 - confidence], (images, 1))
    return evaluate(targets, probabilities, ("a", "b"), folds=5)
