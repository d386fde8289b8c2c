"""Numbers are said so that nobody takes them for more than they are."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from topwork.report import words


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0 %"),
        (0.0001, "< 0.1 %"),
        (0.919, "91.9 %"),
        (0.9996, "> 99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_only_all_is_a_hundred_percent(share: float, said: str) -> None:
    """A share is rounded, but never to all or nothing."""
    assert words.percent(share).replace(words.NO_BREAK, " ") == said


def test_an_interval_is_said_with_one_unit() -> None:
    """An interval has one percent sign."""
    assert words.between(0.9061, 0.93).replace(words.NO_BREAK, " ") == "90.6\N{EN DASH}93.0 %"


@pytest.mark.parametrize(
    ("difference", "said"),
    [(0.0042, "+0.4"), (-0.0042, "\N{MINUS SIGN}0.4"), (0.0, "0.0"), (-0.0001, "0.0")],
)
def test_a_difference_has_a_sign_unless_it_is_none(difference: float, said: str) -> None:
    """Differences are percentage points with a true minus; what rounds to nothing has no sign."""
    assert words.points(difference) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(999, "999"), (1_000, "1.0k"), (1_449, "1.4k"), (25_300, "25k"), (3_000_000, "3.0M")],
)
def test_counts_fit_on_a_bar(number: int, said: str) -> None:
    """Above a bar a count has at most four characters."""
    assert words.few(number) == said


def test_one_thing_is_singular() -> None:
    """One is one image, two are two images, or classes."""
    assert words.several(1, "image") == "1 image"
    assert words.several(2_000, "image") == "2,000 images"
    assert words.several(2, "class", "classes") == "2 classes"


def test_times_are_utc() -> None:
    """A time is said in UTC, wherever it was made."""
    there = timezone(timedelta(hours=5, minutes=30))
    assert words.when(datetime(2026, 3, 1, 3, 0, tzinfo=there)) == "2026-02-28 21:30 UTC"
