"""The interval of a drop is honest: with few images, with none that differs, with many labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.comparison import LabelChange, drop_interval


def label(images: int, lost: int, gained: int, *, before: float = 0.9) -> LabelChange:
    """Return a label's change; its recalls before and after do not matter to the interval."""
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
    """Return any label's change."""
    images = draw(st.integers(1, 500))
    lost = draw(st.integers(0, images))
    return label(images, lost, draw(st.integers(0, images - lost)))


def test_the_interval_is_that_of_a_sum_by_hand() -> None:
    """Two labels: variances with a half more in each cell, added and divided by 2 squared."""
    low, high = drop_interval([label(10, 3, 1), label(40, 0, 0)])
    first = (5 / 12 - (2 / 12) ** 2) / 12
    second = (1 / 42) / 42
    half = 1.959964 * math.sqrt((first + second) / 4)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half))


def test_images_that_do_not_differ_prove_little() -> None:
    """Where nothing was lost or gained the interval has a width, the less the more images."""
    widths = [np.diff(drop_interval([label(images, 0, 0)] * 4))[0] for images in (5, 20, 400)]
    assert widths == pytest.approx([0.28, 0.089, 0.0049], rel=0.01)


def test_nothing_in_common_says_nothing() -> None:
    """Without labels the drop may be anything."""
    assert drop_interval([]) == (-1.0, 1.0)


@settings(max_examples=100)
@given(st.lists(changes(), min_size=1, max_size=8))
def test_the_interval_holds_the_drop(labels: list[LabelChange]) -> None:
    """It lies around the mean of the labels' drops, whatever these are, and within -1 to 1."""
    low, high = drop_interval(labels)
    drop = sum((one.lost - one.gained) / one.images for one in labels) / len(labels)
    assert -1 <= low < drop + 1e-12
    assert drop - 1e-12 < high <= 1


@pytest.mark.parametrize("classes", [4, 40])
@pytest.mark.parametrize("images", [5, 20, 100])
@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.03), (0.1, 0.1), (0.1, 0.02)])
def test_the_interval_holds_the_truth(
    classes: int, images: int, lost: float, gained: float
) -> None:
    """In simulations it does about 95 times in 100, and a drop that is none rarely seems one."""
    rng = np.random.default_rng(0)
    shares = [lost, gained, 1 - lost - gained]
    held = worse = 0
    for _ in range(1_000):
        cells = rng.multinomial(images, shares, classes).tolist()
        low, high = drop_interval([label(images, one, other) for one, other, _ in cells])
        held += low <= lost - gained <= high
        worse += low > 0
    assert held >= 925
    assert lost > gained or worse <= 40
