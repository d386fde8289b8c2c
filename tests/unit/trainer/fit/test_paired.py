"""Paired comparison of two heads, with its confidence interval."""

from __future__ import annotations

import numpy as np
import pytest

from topwork_trainer.fit.paired import paired


def _right(*pattern: bool, times: int = 100) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array(pattern * times)


def test_gain_is_the_difference_in_accuracy() -> None:
    """The gain is over all images and within its interval."""
    difference = paired(_right(True, True, True, False), _right(True, True, False, False))
    assert difference.images == 400
    assert difference.gain == pytest.approx(0.25)
    assert difference.low < difference.gain < difference.high


def test_equal_answers_have_no_gain() -> None:
    """The gain is 0, and its interval becomes narrower with more images."""
    few, many = (paired(*[_right(True, False, times=times)] * 2) for times in (10, 1000))
    assert few.gain == many.gain == 0
    assert few.low < many.low < 0 < many.high < few.high


def test_swapped_heads_swap_the_signs() -> None:
    """Swapping the heads negates gain and interval."""
    new, old = _right(True, True, False, True), _right(True, False, True, False)
    ahead, back = paired(new, old), paired(old, new)
    assert (ahead.gain, ahead.low, ahead.high) == pytest.approx((-back.gain, -back.high, -back.low))


def test_images_right_in_both_do_not_make_a_gain_significant() -> None:
    """3 wins against 1 loss are not significant among 4 images, nor among 400."""
    ties = np.ones(396, dtype=bool)
    new = np.concatenate([np.array([True, True, True, False]), ties])
    old = np.concatenate([np.array([False, False, False, True]), ties])
    assert paired(new[:4], old[:4]).low < 0
    assert paired(new, old).low < 0


def test_intervals_hold_in_about_95_of_100_cases() -> None:
    """The interval contains the known difference of two heads in at least 93 % of the cases."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        draw = rng.random(300)
        difference = paired(draw < 0.85, (draw < 0.80) | (draw > 0.98))  # 0.05 won, 0.02 lost
        covered += difference.low <= 0.03 <= difference.high
    assert 0.93 <= covered / 1000 <= 0.99


def test_no_images_have_no_gain() -> None:
    """Without common images the gain is 0 and the interval contains 0."""
    nothing = np.zeros(0, dtype=bool)
    difference = paired(nothing, nothing)
    assert (difference.images, difference.gain) == (0, 0)
    assert difference.low < 0 < difference.high


def test_difference_is_shown_in_percentage_points() -> None:
    """The text has percentage points."""
    assert str(paired(_right(True), _right(False))).startswith("+100.00 points (")
