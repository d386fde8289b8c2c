"""Parts are computed side by side, and their results stand in the parts' order."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from topwork.learning.sharing import ALONE, Threads

WAIT_SECONDS = 10.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_are_in_the_order_of_the_parts(count: int) -> None:
    """However many threads there are."""
    with Threads(count) as threads:
        assert threads.map(lambda part: part * part, range(50)) == [at * at for at in range(50)]
        calls = [partial(threads.map, str, [at, at + 1]) for at in range(4)]
        assert threads.together(*calls) == [[str(at), str(at + 1)] for at in range(4)]
        assert threads.both(lambda: 1, lambda: "two") == (1, "two")


def test_as_many_parts_run_at_a_time_as_there_are_threads() -> None:
    """Two meet each other; a third call's parts wait for a thread."""
    meeting = threading.Barrier(2, timeout=WAIT_SECONDS)
    running, most, lock = 0, 0, threading.Lock()

    def part(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait()
        with lock:
            running -= 1

    with Threads(2) as threads:
        threads.together(*[partial(threads.map, part, range(2))] * 3)
    assert most == 2


def test_one_thread_is_the_callers() -> None:
    """Then nothing is started."""
    found = ALONE.map(lambda _: threading.get_ident(), range(3))
    found += ALONE.together(threading.get_ident, threading.get_ident)
    found += ALONE.both(threading.get_ident, threading.get_ident)
    assert set(found) == {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_of_a_part_is_raised(count: int) -> None:
    """By map and by the call that others ran beside."""
    with Threads(count) as threads:
        with pytest.raises(ZeroDivisionError):
            threads.map(lambda part: 1 // part, [1, 0])
        with pytest.raises(ZeroDivisionError):
            threads.both(lambda: 1 // 0, lambda: 2)
