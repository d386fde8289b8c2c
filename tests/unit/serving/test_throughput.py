"""Throughput estimate: measured only while images wait."""

from __future__ import annotations

import pytest

from topwork.serving.throughput import ThroughputEstimate


def test_estimate_converges_to_the_measured_rate() -> None:
    """After some windows of a steady backlog the initial guess has no effect."""
    throughput = ThroughputEstimate(1.0)
    for number in range(2000):
        throughput.end(number * 0.005, backlog=True)
    assert throughput.seconds == pytest.approx(0.005, rel=0.01)


def test_idle_time_is_ignored() -> None:
    """Time without waiting images does not change the estimate."""
    throughput = ThroughputEstimate(0.005)
    for burst in range(50):
        for number in range(40):
            throughput.end(10 * burst + number * 0.005, backlog=number < 39)
    assert throughput.seconds == pytest.approx(0.005, rel=0.01)


def test_micro_batches_are_averaged() -> None:
    """If 32 images end together every 64 ms, the estimate is 2 ms per image."""
    throughput = ThroughputEstimate(1.0)
    for number in range(3200):
        throughput.end(number // 32 * 0.064, backlog=True)
    assert throughput.seconds == pytest.approx(0.002, rel=0.1)
