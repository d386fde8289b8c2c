"""Computations of the benchmarks on their measurements."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from benchmarks.serving import peers
from benchmarks.serving.processes import Processes
from benchmarks.serving.swaps import longest_gap


@pytest.mark.parametrize(
    ("windows", "longest"),
    [
        ([(0.0, 10.0)], 4.0),
        ([(2.5, 2.6)], 4.0),  # within the gap from 2 to 6
        ([(0.0, 1.5)], 1.0),
        ([(6.5, 6.6), (0.0, 0.5)], 1.0),
        ([(8.0, 9.0)], 0.0),  # after the last answer
        ([], 0.0),
    ],
)
def test_longest_gap_overlaps_a_window(windows: list[tuple[float, float]], longest: float) -> None:
    """A gap between answers counts if it overlaps a window at any point."""
    assert longest_gap([0.0, 1.0, 2.0, 6.0, 7.0], windows) == longest


def test_top5_is_found_in_any_wrapper() -> None:
    """Fields of a framework around the answer are ignored."""
    assert peers.top5(b'\x0a\x03{"top5":[[2,0.9],[0,0.1]],"x":1}') == [[2, 0.9], [0, 0.1]]


def test_answer_without_top5_is_refused() -> None:
    """An error page is not an answer."""
    with pytest.raises(ValueError, match="not found"):
        peers.top5(b"<html>")


def test_processes_measure_cpu_and_memory() -> None:
    """The CPU time of this process grows, and its memory is positive."""
    own = Processes(os.getpid())
    before = own.cpu_seconds()
    sum(range(3_000_000))
    assert own.cpu_seconds() >= before > 0
    assert own.memory_mib() > 1


def test_ended_process_has_no_memory() -> None:
    """A zombie process counts as no memory."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert Processes(ended.pid).memory_mib() == 0
    ended.wait()
