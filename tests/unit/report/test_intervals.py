"""Confidence intervals of changes, and their significance."""

from __future__ import annotations

import pytest

from topwork.report import intervals


def test_change_matches_the_example_of_the_paper() -> None:
    """Newcombe's example, 56 of 70 against 48 of 80, gives 0.0524 to 0.3339."""
    change = intervals.change(intervals.share(48, 80), intervals.share(56, 70))
    assert change.value == pytest.approx(0.2)
    assert (change.low, change.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (80, 95, "better"),
        (95, 80, "worse"),
        (90, 92, "not significant"),
        (90, 90, "not significant"),
    ],
)
def test_verdict_needs_a_significant_change(before: int, after: int, verdict: str) -> None:
    """A difference of 2 in 100 images is not significant; 15 is, up and down."""
    change = intervals.change(intervals.share(before, 100), intervals.share(after, 100))
    assert change.verdict == verdict


@pytest.mark.parametrize(
    ("lows", "start"), [([0.83, 0.95], 0.8), ([0.8], 0.7), ([0.0], 0.0), ([], 0.0), ([1.0], 0.9)]
)
def test_an_axis_begins_below_all_bars(lows: list[float], start: float) -> None:
    """The axis starts at a multiple of 0.1 below the lowest bar."""
    assert intervals.axis(lows) == pytest.approx(start)
