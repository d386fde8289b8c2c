"""Messages of an upload (AddClass, AddExamples), cut from named images."""

from __future__ import annotations

from typing import Generic, TypeVar

from topwork.limits import DEFAULT_LIMITS
from topwork.printable import encodable
from topwork.v1 import change_pb2 as change_pb

P = TypeVar("P", change_pb.AddClassRequest, change_pb.AddExamplesRequest)

MESSAGE_BYTES = 2 * 2**20
"""Images are sent in messages of about this size; a larger image has its own."""


class UploadBatcher(Generic[P]):
    """One call's messages, of which ``first`` has the config."""

    def __init__(self, first: P) -> None:
        self._message: P = first
        self._make: type[P] = type(first)
        self._length = 0

    def put(self, name: str, content: bytes) -> P | None:
        """Add an image; return the message that has no room for it, None if it has."""
        full = None
        if self._length and self._length + len(content) > MESSAGE_BYTES:
            full, self._message, self._length = self._message, self._make(), 0
        # The server cuts long names at the end, which is the file's name.
        shown = encodable(name)[-DEFAULT_LIMITS.max_display_name_length :]
        self._message.images.add(content=content, display_name=shown)
        self._length += len(content)
        return full

    def end(self) -> P:
        """Return the last message."""
        return self._message
