"""Iterator over images for another thread, which stops when the iterator is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from topwork.client import source
from topwork.client.source import Source


def test_source_returns_all_items_in_order() -> None:
    """Iterating over an open source exhausts it."""
    with Source(iter("abc")) as opened:
        assert [*opened] == ["a", "b", "c"]
        assert opened.exhausted
        assert opened.failure is None


def test_error_of_the_items_ends_the_source() -> None:
    """The error is stored as ``failure``, and the source is not exhausted."""

    def items() -> Iterator[str]:
        yield "a"
        raise KeyError("gone")

    with Source(items()) as opened:
        assert [*opened] == ["a"]
        assert isinstance(opened.failure, KeyError)
        assert not opened.exhausted
        assert [*opened] == []


def test_close_waits_for_the_item_in_progress() -> None:
    """A closed source starts no other item."""
    begun, proceed = threading.Event(), threading.Event()
    taken: list[int] = []
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            begun.set()
            proceed.wait()
            yield number

    opened = Source(items())
    thread = threading.Thread(target=lambda: taken.extend(opened))
    with opened:
        thread.start()
        begun.wait()
        threading.Timer(0.1, proceed.set).start()
    assert proceed.is_set()
    thread.join()
    assert (made, taken) == ([0], [0])
    assert not opened.exhausted


def test_close_waits_a_limited_time_for_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source whose items block, such as a camera's, is closed after LEAVE_SECONDS."""
    monkeypatch.setattr(source, "LEAVE_SECONDS", 0.05)
    begun, end = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        begun.set()
        end.wait()
        yield 1

    opened = Source(items())
    thread = threading.Thread(target=lambda: [*opened])
    with opened:
        thread.start()
        begun.wait()
    assert thread.is_alive()
    end.set()
    thread.join()
