"""How sure one may be that one head is better than another."""

from __future__ import annotations

import numpy as np
import pytest

from topwork_trainer.fit.paired import paired


def _right(*pattern: bool, times: int = 100) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array(pattern * times)


def test_the_gain_is_the_difference_in_accuracy() -> None:
    """It is counted over all images, and lies within its interval."""
    found = paired(_right(True, True, True, False), _right(True, True, False, False))
    assert found.images == 400
    assert found.gain == pytest.approx(0.25)
    assert found.low < found.gain < found.high


def test_the_same_answers_are_no_difference() -> None:
    """Nothing gained, and an interval around nothing that more images make narrower."""
    few, many = (paired(*[_right(True, False, times=times)] * 2) for times in (10, 1000))
    assert few.gain == many.gain == 0
    assert few.low < many.low < 0 < many.high < few.high


def test_a_difference_the_other_way_is_its_mirror_image() -> None:
    """Exchanging the two exchanges the signs."""
    new, old = _right(True, True, False, True), _right(True, False, True, False)
    there, back = paired(new, old), paired(old, new)
    assert (there.gain, there.low, there.high) == pytest.approx((-back.gain, -back.high, -back.low))


def test_what_both_get_right_says_nothing() -> None:
    """A win of 3 against 1 is not sure among 4 images, nor among 400."""
    ties = np.ones(396, dtype=bool)
    new = np.concatenate([np.array([True, True, True, False]), ties])
    old = np.concatenate([np.array([False, False, False, True]), ties])
    assert paired(new[:4], old[:4]).low < 0
    assert paired(new, old).low < 0


def test_intervals_hold_in_about_95_of_100_cases() -> None:
    """Of heads whose difference is known, the interval has it in at least 93 %."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        draw = rng.random(300)
        found = paired(draw < 0.85, (draw < 0.80) | (draw > 0.98))  # 0.05 won, 0.02 lost
        held += found.low <= 0.03 <= found.high
    assert 0.93 <= held / 1000 <= 0.99


def test_no_images_are_no_difference() -> None:
    """Without a common image nothing is gained, and nothing is ruled out."""
    nothing = np.zeros(0, dtype=bool)
    found = paired(nothing, nothing)
    assert (found.images, found.gain) == (0, 0)
    assert found.low < 0 < found.high


def test_it_reads_as_points() -> None:
    """People read it in percentage points."""
    assert str(paired(_right(True), _right(False))).startswith("+100.00 points (")
