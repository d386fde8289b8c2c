"""Coverage of the interval of the accuracy drop, with few images and with many labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.comparison import LabelChange, drop_interval


def label(images: int, lost: int, gained: int, *, before: float = 0.9) -> LabelChange:
    """Return a label's change with consistent recalls."""
    return LabelChange(
        label="a",
        images=images,
        recall_before=before,
        recall_after=before - (lost - gained) / images,
        lost=lost,
        gained=gained,
    )


@st.composite
def changes(draw: st.DrawFn) -> LabelChange:
    """Draw an arbitrary label change."""
    images = draw(st.integers(1, 500))
    lost = draw(st.integers(0, images))
    return label(images, lost, draw(st.integers(0, images - lost)))


def test_drop_interval_equals_a_manual_computation() -> None:
    """Two labels: variances with a half added to each cell, summed and divided by 2 squared."""
    low, high = drop_interval([label(10, 3, 1), label(40, 0, 0)])
    first = (5 / 12 - (2 / 12) ** 2) / 12
    second = (1 / 42) / 42
    half = 1.959964 * math.sqrt((first + second) / 4)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half))


def test_drop_interval_without_differences_has_a_width() -> None:
    """If no image differs, the interval has a width that shrinks with more images."""
    widths = [np.diff(drop_interval([label(images, 0, 0)] * 4))[0] for images in (5, 20, 400)]
    assert widths == pytest.approx([0.28, 0.089, 0.0049], rel=0.01)


def test_drop_interval_without_labels_is_unbounded() -> None:
    """Without labels the interval is -1 to 1."""
    assert drop_interval([]) == (-1.0, 1.0)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.lists(changes(), min_size=1, max_size=8))
def test_drop_interval_contains_the_observed_drop(labels: list[LabelChange]) -> None:
    """The interval contains the mean of the labels' drops and is within -1 to 1."""
    low, high = drop_interval(labels)
    drop = sum((label.lost - label.gained) / label.images for label in labels) / len(labels)
    assert -1 <= low < drop + 1e-12
    assert drop - 1e-12 < high <= 1


@pytest.mark.parametrize("classes", [4, 40])
@pytest.mark.parametrize("images", [5, 20, 100])
@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.03), (0.1, 0.1), (0.1, 0.02)])
def test_drop_interval_covers_the_true_drop(
    classes: int, images: int, lost: float, gained: float
) -> None:
    """In simulations it covers the true drop in about 95 %, with few false positives."""
    rng = np.random.default_rng(0)
    shares = [lost, gained, 1 - lost - gained]
    covered = worse = 0
    for _ in range(1_000):
        cells = rng.multinomial(images, shares, classes).tolist()
        low, high = drop_interval([label(images, *counts) for *counts, _ in cells])
        covered += low <= lost - gained <= high
        worse += low > 0
    assert covered >= 925
    assert lost > gained or worse <= 40
