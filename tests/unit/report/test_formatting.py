"""Formatting of numbers and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from topwork.report import formatting


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0 %"), (0.0001, "< 0.1 %"), (0.919, "91.9 %"), (0.9996, "> 99.9 %"), (1.0, "100 %")],
)
def test_percent_rounds_to_neither_0_nor_100(share: float, expected: str) -> None:
    """Only the exact shares 0 and 1 are shown as 0 % and 100 %."""
    assert formatting.percent(share).replace(formatting.NO_BREAK, " ") == expected


def test_interval_has_one_percent_sign() -> None:
    """The percent sign follows the upper end only."""
    assert (
        formatting.between(0.9061, 0.93).replace(formatting.NO_BREAK, " ")
        == "90.6\N{EN DASH}93.0 %"
    )


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.0042, "+0.4"), (-0.0042, "\N{MINUS SIGN}0.4"), (0.0, "0.0"), (-0.0001, "0.0")],
)
def test_difference_has_a_sign_unless_it_rounds_to_0(difference: float, expected: str) -> None:
    """Differences are percentage points with a minus sign; 0.0 has no sign."""
    assert formatting.points(difference) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(999, "999"), (1_000, "1.0k"), (1_449, "1.4k"), (25_300, "25k"), (3_000_000, "3.0M")],
)
def test_few_has_at_most_four_characters(number: int, expected: str) -> None:
    """Large counts are abbreviated with k and M."""
    assert formatting.few(number) == expected


def test_several_uses_singular_and_plural() -> None:
    """1 has the singular noun; other numbers have the plural, regular or given."""
    assert formatting.several(1, "image") == "1 image"
    assert formatting.several(2_000, "image") == "2,000 images"
    assert formatting.several(2, "class", "classes") == "2 classes"


def test_times_are_utc() -> None:
    """Times of other time zones are converted to UTC."""
    local = timezone(timedelta(hours=5, minutes=30))
    assert formatting.when(datetime(2026, 3, 1, 3, 0, tzinfo=local)) == "2026-02-28 21:30 UTC"
