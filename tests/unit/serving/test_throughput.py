"""The pace is that of a backlog."""

from __future__ import annotations

import pytest

from topwork.serving.throughput import ThroughputEstimate


def test_it_follows_what_is_measured() -> None:
    """After a few windows of a steady backlog the guess is forgotten."""
    pace = ThroughputEstimate(1.0)
    for number in range(2000):
        pace.end(number * 0.005, backlog=True)
    assert pace.seconds == pytest.approx(0.005, rel=0.01)


def test_pauses_do_not_count() -> None:
    """Time in which nothing waited says nothing of the pace."""
    pace = ThroughputEstimate(0.005)
    for burst in range(50):
        for number in range(40):
            pace.end(10 * burst + number * 0.005, backlog=number < 39)
    assert pace.seconds == pytest.approx(0.005, rel=0.01)


def test_micro_batches_are_averaged() -> None:
    """Where 32 images end at once every 64 ms, an image takes 2 ms."""
    pace = ThroughputEstimate(1.0)
    for number in range(3200):
        pace.end(number // 32 * 0.064, backlog=True)
    assert pace.seconds == pytest.approx(0.002, rel=0.1)
