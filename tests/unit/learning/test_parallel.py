"""Parallel computation: order of results, number of threads, and errors."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from topwork.learning.parallel import SINGLE_THREAD, Threads

WAIT_SECONDS = 10.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_are_in_the_order_of_the_parts(count: int) -> None:
    """Results are in order for any number of threads."""
    with Threads(count) as threads:
        assert threads.map(lambda part: part * part, range(50)) == [at * at for at in range(50)]
        calls = [partial(threads.map, str, [at, at + 1]) for at in range(4)]
        assert threads.run_all(*calls) == [[str(at), str(at + 1)] for at in range(4)]
        assert threads.run_both(lambda: 1, lambda: "two") == (1, "two")


def test_number_of_concurrent_parts_is_limited() -> None:
    """Two threads run two parts at a time; the parts of a third call wait."""
    barrier = threading.Barrier(2, timeout=WAIT_SECONDS)
    running, most, lock = 0, 0, threading.Lock()

    def part(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait()
        with lock:
            running -= 1

    with Threads(2) as threads:
        threads.run_all(*[partial(threads.map, part, range(2))] * 3)
    assert most == 2


def test_single_thread_is_the_callers() -> None:
    """SINGLE_THREAD starts no thread."""
    found = SINGLE_THREAD.map(lambda _: threading.get_ident(), range(3))
    found += SINGLE_THREAD.run_all(threading.get_ident, threading.get_ident)
    found += SINGLE_THREAD.run_both(threading.get_ident, threading.get_ident)
    assert set(found) == {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 3])
def test_error_of_a_part_is_raised(count: int) -> None:
    """Errors are raised by map and by run_both."""
    with Threads(count) as threads:
        with pytest.raises(ZeroDivisionError):
            threads.map(lambda part: 1 // part, [1, 0])
        with pytest.raises(ZeroDivisionError):
            threads.run_both(lambda: 1 // 0, lambda: 2)
