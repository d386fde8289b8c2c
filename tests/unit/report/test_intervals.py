"""A change is called one only where the images show it."""

from __future__ import annotations

import pytest

from topwork.report import intervals


def test_a_change_has_the_interval_of_the_paper() -> None:
    """56 of 70 against 48 of 80 is Newcombe's own example: 0.0524 to 0.3339."""
    change = intervals.change(intervals.share(48, 80), intervals.share(56, 70))
    assert change.value == pytest.approx(0.2)
    assert (change.low, change.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (80, 95, "better"),
        (95, 80, "worse"),
        (90, 92, "within the noise"),
        (90, 90, "within the noise"),
    ],
)
def test_a_verdict_needs_more_than_noise(before: int, after: int, verdict: str) -> None:
    """Of 100 images two more are noise, 15 more are not; and so downwards."""
    change = intervals.change(intervals.share(before, 100), intervals.share(after, 100))
    assert change.verdict == verdict


@pytest.mark.parametrize(
    ("lows", "start"), [([0.83, 0.95], 0.8), ([0.8], 0.7), ([0.0], 0.0), ([], 0.0), ([1.0], 0.9)]
)
def test_an_axis_begins_below_all_bars(lows: list[float], start: float) -> None:
    """Bars start at a round tenth that leaves room for the lowest one."""
    assert intervals.axis(lows) == pytest.approx(start)
