"""Sources of images: taken in another thread, which leaves them when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from topwork.client import source
from topwork.client.source import Source


def test_a_source_gives_all_items_in_order() -> None:
    """Whatever iterates over an open source gets what is in it."""
    with Source(iter("abc")) as opened:
        assert [*opened] == ["a", "b", "c"]
        assert opened.exhausted
        assert opened.failure is None


def test_what_the_items_raise_ends_the_source_and_is_kept() -> None:
    """An error is no end that passes for the items' own."""

    def items() -> Iterator[str]:
        yield "a"
        raise KeyError("gone")

    with Source(items()) as opened:
        assert [*opened] == ["a"]
        assert isinstance(opened.failure, KeyError)
        assert not opened.exhausted
        assert [*opened] == []


def test_a_closed_source_has_been_left() -> None:
    """Closing waits for the item that is on its way; no other is begun."""
    begun, go_on = threading.Event(), threading.Event()
    taken: list[int] = []
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            begun.set()
            go_on.wait()
            yield number

    opened = Source(items())
    thread = threading.Thread(target=lambda: taken.extend(opened))
    with opened:
        thread.start()
        begun.wait()
        threading.Timer(0.1, go_on.set).start()
    assert go_on.is_set()
    thread.join()
    assert (made, taken) == ([0], [0])
    assert not opened.exhausted


def test_an_item_that_never_comes_holds_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that is left where it waits, such as for a camera, is closed all the same."""
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
