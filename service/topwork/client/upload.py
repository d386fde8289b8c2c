"""Messages of an upload (AddClass, AddClasses, AddExamples, Evaluate), cut from named images."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from topwork.client.inputs import Content, to_input
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import encodable
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb

P = TypeVar(
    "P",
    change_pb.AddClassRequest,
    change_pb.AddExamplesRequest,
    change_pb.AddClassesRequest,
    evaluation_pb.EvaluateRequest,
)

MESSAGE_BYTES = 2 * 2**20
"""Raising it sends larger messages; an image over this size has a message of its own."""


class UploadBatcher(Generic[P]):
    """Batches the images of one call into messages; ``first`` has the config."""

    def __init__(self, first: P) -> None:
        self._message: P = first
        self._make: type[P] = type(first)
        self._length = 0

    def add(self, name: str, content: Content, **fields: Any) -> P | None:
        """Add an image or embedding; return the message that it no longer fits into, if any.

        ``fields`` are those of the image's message beside content and name.
        """
        full = None
        if self._length and self._length + len(content) > MESSAGE_BYTES:
            full, self._message, self._length = self._message, self._make(), 0
        # The server truncates long names at the end, where the file's own name is.
        end_of_name = encodable(name)[-DEFAULT_LIMITS.max_display_name_length :]
        image = self._message.images.add(display_name=end_of_name, **fields)
        set_content(image, content)
        self._length += len(content)
        return full

    def finish(self) -> P:
        """Return the last message."""
        return self._message


def set_content(image: Any, content: Content) -> None:
    """Set the content, or the input, of an uploaded image's message."""
    if isinstance(content, bytes):
        image.content = content
    else:
        image.input.CopyFrom(to_input(content))
