"""Results of work in threads, in the order of the items."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from topwork.in_order import in_order


def test_results_are_in_the_order_of_the_items() -> None:
    """Also if a later item is done first."""
    second = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            assert second.wait(60)
        else:
            second.set()
        return -item

    assert list(in_order(work, [1, 2, 3], threads=2, ahead=2)) == [(1, -1), (2, -2), (3, -3)]


def test_at_most_ahead_items_are_read_before_a_result_is_taken() -> None:
    """A consumer that stops reads no more of the items."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    results = in_order(lambda item: item, items(), threads=1, ahead=3)
    assert next(results) == (0, 0)
    assert read == [0, 1, 2]
    results.close()
    assert read == [0, 1, 2]


def test_error_of_work_comes_at_its_item() -> None:
    """The results before it are yielded."""

    def work(item: int) -> float:
        return 1 / item

    results = in_order(work, [1, 0, 2], threads=2, ahead=3)
    assert next(results) == (1, 1.0)
    with pytest.raises(ZeroDivisionError):
        next(results)
