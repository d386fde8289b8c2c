"""Sliding window of a StreamClassify call: batching, backpressure, and results in image order.

Both clients use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from google.rpc import code_pb2, status_pb2

from topwork.client import calls
from topwork.client.calls import CallFailed
from topwork.client.inputs import Content
from topwork.client.results import ImageResult, StreamResult
from topwork.client.upload import MESSAGE_BYTES
from topwork.errors import ImageError
from topwork.limits import DEFAULT_LIMITS
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.wire import status as statuses

IMAGES_PER_MESSAGE = 16
"""Raising it saves calls into gRPC, but leaves cores idle while a message is on its way."""

MAX_IN_FLIGHT_IMAGES = 512
MAX_IN_FLIGHT_BYTES = 64 * 2**20
"""Raising them lets a client send more images before it must take their results."""

MESSAGE_OVERHEAD = 4096
"""Upper bound of a message's bytes besides its images."""


@dataclass(slots=True)
class _Message:
    """The size and the results of a message in flight."""

    images: int = 0
    length: int = 0
    """Bytes of its images."""
    oversized: dict[int, classify_pb.ImageResult] = field(default_factory=dict)
    """Results of the images that are too large to send, by position."""
    results: list[StreamResult] | CallFailed | None = None
    """None: not yet received."""


class StreamWindow:
    """Batches the images of one call into messages and orders their results. Not thread-safe.

    A message is complete with ``images_per_message`` images, or with the server's limit of images
    if that is lower, or with some megabytes. ``timeout`` in seconds applies to each message.
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
        self._template = classify_pb.StreamClassifyRequest(
            request=calls.classify_request(model, (), revision, top_k)
        )
        if timeout is not None:
            self._template.timeout.FromNanoseconds(round(timeout * 1e9))
        payload = min(limits.max_message_bytes, DEFAULT_LIMITS.max_message_bytes) - MESSAGE_OVERHEAD
        self._max_image_bytes = min(limits.max_image_bytes, payload)
        self._max_images = min(images_per_message, limits.max_images_per_request)
        self._max_bytes = min(MESSAGE_BYTES, payload - self._max_image_bytes)
        self._request, self._message = self._start_message(0)
        self._in_flight: dict[int, _Message] = {}
        self._images = 0
        self._bytes = 0
        self._next = 0

    def add(self, image: Content) -> classify_pb.StreamClassifyRequest | None:
        """Add an image or embedding; return the message that it completes, if any."""
        message = self._message
        if len(image) > self._max_image_bytes:
            message.oversized[message.images] = _oversized_result(
                image, message.images, self._max_image_bytes
            )
            image = b""  # the other images keep their positions
        calls.add_input(self._request.request, image)
        message.images += 1
        message.length += len(image)
        if message.images < self._max_images and message.length < self._max_bytes:
            return None
        return self._send()

    def finish(self) -> classify_pb.StreamClassifyRequest | None:
        """Return the incomplete last message; None if there is none."""
        return self._send() if self._message.images else None

    @property
    def is_open(self) -> bool:
        """True if another message may be sent."""
        return self._images < MAX_IN_FLIGHT_IMAGES and self._bytes < MAX_IN_FLIGHT_BYTES

    def receive(self, response: classify_pb.StreamClassifyResponse) -> None:
        """Store the results of a response."""
        message = self._in_flight[response.id]
        if response.HasField("error"):
            message.results = CallFailed(response.error)
            return
        message.results = [
            StreamResult(
                revision=response.response.revision,
                result=ImageResult.of(message.oversized.get(position, result)),
            )
            for position, result in enumerate(response.response.results)
        ]

    def take(self) -> list[StreamResult]:
        """Return the next results in image order; empty until the next message has its results.

        Raises CallFailed if the next message failed.
        """
        results: list[StreamResult] = []
        while (
            message := self._in_flight.get(self._next)
        ) is not None and message.results is not None:
            if isinstance(message.results, CallFailed):
                if results:
                    break  # the results before the error come first
                raise message.results
            results += message.results
            del self._in_flight[self._next]
            self._next += 1
            self._images -= message.images
            self._bytes -= message.length
        return results

    def check_complete(self) -> None:
        """Raise CallFailed if a response is missing."""
        if self._in_flight:
            text = f"the server ended the stream and left {self._images} images unanswered"
            raise CallFailed(status_pb2.Status(code=code_pb2.INTERNAL, message=text))

    def _send(self) -> classify_pb.StreamClassifyRequest:
        request, message = self._request, self._message
        self._in_flight[request.id] = message
        self._images += message.images
        self._bytes += message.length
        self._request, self._message = self._start_message(request.id + 1)
        return request

    def _start_message(self, number: int) -> tuple[classify_pb.StreamClassifyRequest, _Message]:
        request = classify_pb.StreamClassifyRequest(id=number)
        request.MergeFrom(self._template)
        return request, _Message()


def _oversized_result(image: Content, position: int, limit: int) -> classify_pb.ImageResult:
    error = ImageError(
        f"the image is {len(image)} bytes; the limit is {limit}",
        field=f"images[{position}]",
        reason="IMAGE_TOO_LARGE",
    )
    return classify_pb.ImageResult(error=statuses.from_error(error))
