"""Pages of a list: so many messages, and never more than one message can carry."""

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
        found.append([len(one.name) for one in page.messages])
        token = page.token
    return found


def test_a_page_has_as_many_as_asked_for() -> None:
    """Small messages fill pages of the size, the last one aside."""
    assert pages_of([1] * 7, 3) == [[1] * 3, [1] * 3, [1]]
    assert pages_of([1] * 6, 3) == [[1] * 3, [1] * 3]
    assert pages_of([], 3) == [[]]


def test_a_page_ends_before_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large messages come in more pages, in order; one that is too long has its own."""
    monkeypatch.setattr(pages, "PAGE_BYTES", 100)
    assert pages_of([40, 40, 40, 90, 300, 5, 5], 50) == [[40, 40], [40], [90], [300], [5, 5]]
