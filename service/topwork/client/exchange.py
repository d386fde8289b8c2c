"""What a client remembers of a StreamClassify call, blocking or not.

Images are cut into messages, and their results put back in the images' order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.rpc import code_pb2, status_pb2

from topwork.client import calls
from topwork.client.calls import CallFailed
from topwork.client.results import ImageResult, StreamResult
from topwork.client.upload import MESSAGE_BYTES
from topwork.errors import ImageError
from topwork.limits import DEFAULT_LIMITS
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.wire import status as statuses

IMAGES_A_MESSAGE = 16
"""Fewer cost more calls into gRPC, more leave cores idle while a message comes and goes."""

MOST_IMAGES = 512
MOST_BYTES = 64 * 2**20
"""When so many images, or bytes of them, were sent and their results not taken, sending waits."""

OVERHEAD = 4096
"""Bytes of a message that are not its images', at most."""


@dataclass(slots=True)
class _Message:
    """What is known of a message."""

    images: int = 0
    length: int = 0
    """Bytes of its images."""
    refused: dict[int, classify_pb.ImageResult] = field(default_factory=dict)
    """Results of the images that were too large to be sent, by position."""
    results: list[StreamResult] | CallFailed | None = None
    """None: not answered yet."""


class Exchange:
    """One call's messages and results. Not thread-safe.

    A message is complete with ``images_per_message`` images, if the server takes as many, or with
    some megabytes of them. ``timeout`` in seconds is each message's.
    """

    def __init__(
        self,
        model: str,
        limits: model_pb.Limits,
        *,
        revision: int,
        top_k: int,
        images_per_message: int,
        timeout: float | None,
    ) -> None:
        if images_per_message < 1:
            raise ValueError(f"images_per_message is {images_per_message}; it must be at least 1")
        self._empty = classify_pb.StreamClassifyRequest(
            request=calls.classify_request(model, (), revision, top_k)
        )
        if timeout is not None:
            self._empty.timeout.FromNanoseconds(round(timeout * 1e9))
        longest = min(limits.max_message_bytes, DEFAULT_LIMITS.max_message_bytes) - OVERHEAD
        self._largest_image = min(limits.max_image_bytes, longest)
        self._most_images = min(images_per_message, limits.max_images_per_request)
        self._most_bytes = min(MESSAGE_BYTES, longest - self._largest_image)
        self._request, self._message = self._new(0)
        self._sent: dict[int, _Message] = {}
        self._images = 0
        self._bytes = 0
        self._taken = 0

    def put(self, image: bytes) -> classify_pb.StreamClassifyRequest | None:
        """Add an image; return the message that it completes, None if it completes none."""
        message = self._message
        if len(image) > self._largest_image:
            message.refused[message.images] = _too_large(image, message.images, self._largest_image)
            image = b""  # keeps its place
        self._request.request.images.append(image)
        message.images += 1
        message.length += len(image)
        if message.images < self._most_images and message.length < self._most_bytes:
            return None
        return self._send()

    def end(self) -> classify_pb.StreamClassifyRequest | None:
        """Return the last message; None if all images were sent."""
        return self._send() if self._message.images else None

    @property
    def has_room(self) -> bool:
        """Whether another message may be sent."""
        return self._images < MOST_IMAGES and self._bytes < MOST_BYTES

    def answer(self, response: classify_pb.StreamClassifyResponse) -> None:
        """Note an answer."""
        message = self._sent[response.id]
        if response.HasField("error"):
            message.results = CallFailed(response.error)
            return
        message.results = [
            StreamResult(
                revision=response.response.revision,
                result=ImageResult.of(message.refused.get(position, result)),
            )
            for position, result in enumerate(response.response.results)
        ]

    def take(self) -> list[StreamResult]:
        """Return the next results in the order of the images; none while the next is not there.

        Raises CallFailed where it is the turn of a message that failed.
        """
        taken: list[StreamResult] = []
        while (message := self._sent.get(self._taken)) is not None and message.results is not None:
            if isinstance(message.results, CallFailed):
                if taken:
                    break  # these first
                raise message.results
            taken += message.results
            del self._sent[self._taken]
            self._taken += 1
            self._images -= message.images
            self._bytes -= message.length
        return taken

    def close(self) -> None:
        """Raise CallFailed if an answer is missing."""
        if self._sent:
            text = f"the server ended the stream and left {self._images} images unanswered"
            raise CallFailed(status_pb2.Status(code=code_pb2.INTERNAL, message=text))

    def _send(self) -> classify_pb.StreamClassifyRequest:
        request, message = self._request, self._message
        self._sent[request.id] = message
        self._images += message.images
        self._bytes += message.length
        self._request, self._message = self._new(request.id + 1)
        return request

    def _new(self, number: int) -> tuple[classify_pb.StreamClassifyRequest, _Message]:
        request = classify_pb.StreamClassifyRequest(id=number)
        request.MergeFrom(self._empty)
        return request, _Message()


def _too_large(image: bytes, position: int, limit: int) -> classify_pb.ImageResult:
    error = ImageError(
        f"the image is {len(image)} bytes; the limit is {limit}",
        field=f"images[{position}]",
        reason="IMAGE_TOO_LARGE",
    )
    return classify_pb.ImageResult(error=statuses.from_error(error))
