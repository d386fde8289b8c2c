"""Pages of lists."""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.message import Message

from topwork.errors import InvalidInput

M = TypeVar("M", bound=Message)

DEFAULT_PAGE = 50
LARGEST_PAGE = 1000
PAGE_BYTES = 16 * 2**20
"""Raising it makes pages of large messages longer; a page must fit into one message."""


class Page(Generic[M]):
    """A page of a list from index ``start`` on: ``size`` messages, fewer if they are large."""

    def __init__(self, start: int, size: int) -> None:
        self.messages: list[M] = []
        self.token = ""
        """Page token of the next page; empty on the last one."""
        self._start = start
        self._size = size
        self._bytes = 0

    def add(self, message: M) -> bool:
        """Add the next message; return False if the page is full."""
        length = message.ByteSize()
        full = len(self.messages) == self._size
        if full or (self.messages and self._bytes + length > PAGE_BYTES):
            self.token = str(self._start + len(self.messages))
            return False
        self.messages.append(message)
        self._bytes += length
        return True


def page_range(size: int, token: str) -> tuple[int, int]:
    """Return offset and length of a page. Raises InvalidInput."""
    if size < 0:
        raise InvalidInput(f"page_size is {size}; it must not be negative", field="page_size")
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidInput(f"page_token {token[:80]!r} was not given here", field="page_token")
    return int(token or 0), min(size or DEFAULT_PAGE, LARGEST_PAGE)
