"""Pages of lists, limited in messages and bytes."""

from __future__ import annotations

import pytest

from topwork.rpc.servicers import pages
from topwork.rpc.servicers.pages import Page
from topwork.v1 import model_service_pb2 as model_pb


def pages_of(lengths: list[int], size: int) -> list[list[int]]:
    """Return the pages that a client gets of messages of these lengths, one after the other."""
    found: list[list[int]] = []
    token = "0"  # noqa: S105  # of a page
    while token:
        start = int(token)
        page = Page[model_pb.Model](start, size)
        for length in lengths[start:]:
            if not page.add(model_pb.Model(name="x" * length)):
                break
        found.append([len(message.name) for message in page.messages])
        token = page.token
    return found


def test_page_has_the_requested_size() -> None:
    """Pages of small messages have the requested size, except the last one."""
    assert pages_of([1] * 7, 3) == [[1] * 3, [1] * 3, [1]]
    assert pages_of([1] * 6, 3) == [[1] * 3, [1] * 3]
    assert pages_of([], 3) == [[]]


def test_page_of_large_messages_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages come in more pages, in order; a message that is too long has its own page."""
    monkeypatch.setattr(pages, "PAGE_BYTES", 100)
    assert pages_of([40, 40, 40, 90, 300, 5, 5], 50) == [[40, 40], [40], [90], [300], [5, 5]]
