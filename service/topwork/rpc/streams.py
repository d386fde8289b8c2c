"""How a StreamClassify call is answered: several messages at a time, each when it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import structlog

from topwork.engine.serving.classify_job import Classified
from topwork.engine.serving.fair_queue import Flow
from topwork.errors import Overloaded, TopworkError, Unavailable
from topwork.rpc import convert
from topwork.rpc import status as statuses
from topwork.rpc.allowance import Allowance
from topwork.rpc.principals import Caller
from topwork.v1 import classifier_service_pb2 as classify_pb

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""When who found too many streams may try again."""


class Engine(Protocol):
    """What answers the messages; see Classifier."""

    async def classify(
        self,
        model: str,
        images: Sequence[bytes],
        *,
        revision: int,
        top_k: int,
        budget: float | None,
        flow: Flow | None,
        patient: bool,
    ) -> Classified:
        """Return the predictions for encoded images, within ``budget`` seconds."""


class Streams:
    """All StreamClassify calls of a server.

    Of each, messages are taken while fewer than ``window`` images are in it, those included whose
    answers the client has not taken yet: so a client that writes too fast, or never reads, is held
    up by HTTP/2 itself, and costs no more than this. At most ``most_open`` are there at a time.
    Belongs to one event loop.
    """

    def __init__(self, engine: Engine, *, most_seconds: float, window: int, most_open: int) -> None:
        self._engine = engine
        self._most_open = most_open
        self._most_seconds = most_seconds
        self._window = window
        self._open: set[_Stream] = set()
        self._ending = False

    async def answer(
        self,
        requests: AsyncIterator[classify_pb.StreamClassifyRequest],
        remaining: Callable[[], float | None],
        caller: Caller,
    ) -> AsyncGenerator[classify_pb.StreamClassifyResponse, None]:
        """Yield the answer to each message as soon as it is there.

        ``remaining`` returns the seconds until the call's deadline, None if it has none. A message
        about a model that is not for the ``caller`` is refused alone. Raises Overloaded if too many
        are open, Unavailable if the server stops before the client has sent all.
        """
        if self._ending:
            raise _stopping()
        if len(self._open) >= self._most_open:
            raise Overloaded(
                f"{len(self._open)} streams are open, which is the limit",
                retry_after=RETRY_SECONDS,
                reason="TOO_MANY_STREAMS",
            )
        flow = Flow()

        async def classify(
            message: classify_pb.StreamClassifyRequest,
        ) -> classify_pb.ClassifyResponse:
            request = message.request
            model = convert.resource_id(request.model, collection="models", field="model")
            caller.check(model)
            classified = await self._engine.classify(
                model,
                request.images,
                revision=request.revision,
                top_k=request.top_k,
                budget=min([self._most_seconds, *_given(message, remaining())]),
                flow=flow,
                patient=True,
            )
            return convert.to_classify_response(classified)

        stream = _Stream(requests, classify, self._window, caller.principal.allowance)
        self._open.add(stream)
        work = asyncio.create_task(stream.run())
        try:
            while (answered := await stream.answered.get()) is not None:
                response, images = answered
                yield response
                stream.leave(images)  # it is on its way: gRPC took it
            await work
        finally:
            self._open.discard(stream)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            log.info("stream", messages=stream.messages, images=stream.images)
        if stream.cut_off:
            raise _stopping()

    def end(self) -> None:
        """Take no more messages: streams end with Unavailable when what they hold is answered."""
        self._ending = True
        for stream in self._open:
            stream.cut()


class _Stream:
    """One call: what is in flight, and what is answered and not yet taken by the client."""

    def __init__(
        self,
        requests: AsyncIterator[classify_pb.StreamClassifyRequest],
        classify: Callable[
            [classify_pb.StreamClassifyRequest], Awaitable[classify_pb.ClassifyResponse]
        ],
        window: int,
        allowance: Allowance,
    ) -> None:
        self._allowance = allowance
        self._taken = 0
        self._requests = requests
        self._classify = classify
        self._window = window
        self._inside = 0
        self._left = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.messages = 0
        self.images = 0
        self.cut_off = False
        self.answered: asyncio.Queue[tuple[classify_pb.StreamClassifyResponse, int] | None] = (
            asyncio.Queue()
        )
        """Answers, each with the images that it holds in the window; ends with None."""

    async def run(self) -> None:
        """Read and answer until the client has sent all and all is answered."""
        try:
            async with asyncio.TaskGroup() as group:
                if not self.cut_off:
                    self._reading = group.create_task(self._read(group))
        finally:
            self._give(self._taken)  # of messages whose answers were never begun
            self.answered.put_nowait(None)

    def leave(self, images: int) -> None:
        """Give room back."""
        self._inside -= images
        self._left.set()

    def _give(self, images: int) -> None:
        self._taken -= images
        self._allowance.give(images)

    def cut(self) -> None:
        """Read no more; nothing changes if all was read."""
        if self._reading is None or self._reading.cancel():
            self.cut_off = True

    async def _read(self, group: asyncio.TaskGroup) -> None:
        async for message in self._requests:
            images = len(message.request.images)
            self.messages += 1
            self.images += images
            held = max(1, images)  # a message without images has an answer too
            await self._allowance.wait(images)
            self._taken += images
            self._inside += held
            group.create_task(self._answer(message, held))
            while self._inside >= self._window:
                self._left.clear()
                await self._left.wait()

    async def _answer(self, message: classify_pb.StreamClassifyRequest, held: int) -> None:
        response = classify_pb.StreamClassifyResponse(id=message.id)
        try:
            response.response.CopyFrom(await self._classify(message))
        except TopworkError as error:
            response.error.CopyFrom(statuses.from_error(error))
        except Exception as error:
            log.error("unexpected error", method="StreamClassify", exc_info=error)
            response.error.CopyFrom(statuses.internal())
        finally:
            self._give(len(message.request.images))
        self.answered.put_nowait((response, held))


def _given(message: classify_pb.StreamClassifyRequest, remaining: float | None) -> Iterator[float]:
    """Yield the seconds that the client gave: for the call, and for this message."""
    if remaining is not None:
        yield remaining
    if message.HasField("timeout"):
        yield convert.seconds(message.timeout, field="timeout")


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping; send what was not answered again")
