"""StreamClassify on the server: several messages at a time, each answered when it is ready."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import structlog

from topwork.access.principals import Caller
from topwork.access.slots import Slots
from topwork.errors import TopworkError, Unavailable
from topwork.rpc import convert
from topwork.serving.classify_batch import Classified
from topwork.serving.fair_queue import Flow
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.wire import status as statuses

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""After which a client that found too many streams may try again."""

IDLE_SECONDS = 60.0
"""How long a stream may be idle for sure. A longer one ends where another has no slot else."""


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
        can_wait: bool,
    ) -> Classified:
        """Return the predictions for encoded images, within ``budget`` seconds."""


class Streams:
    """All StreamClassify calls of a server, of which at most ``most_open`` are there at a time.

    Of each, messages are taken while fewer than ``window`` images are in it, those included whose
    answers the client has not taken yet: so a client that writes too fast, or never reads, is held
    up by HTTP/2 itself, and costs no more than this. Belongs to one event loop.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        most_seconds: float,
        window: int,
        most_open: int,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._engine = engine
        self._slots = Slots(
            most_open, calls="streams", reason="TOO_MANY_STREAMS", retry_after=RETRY_SECONDS
        )
        self._most_seconds = most_seconds
        self._window = window
        self._idle_seconds = idle_seconds
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
        are open, Unavailable if the server stops before the client has sent all, or if the stream
        was idle and another one needs its slot.
        """
        if self._ending:
            raise _stopping()
        if not self._slots.has_room(caller.share):
            await self._end_an_idle_one(caller.share)
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
                can_wait=True,
            )
            return convert.to_classify_response(classified)

        stream = _Stream(requests, classify, self._window, caller)
        try:
            with self._slots.hold(caller.share):
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
        finally:
            stream.closed.set()
        if stream.cut_off is not None:
            raise stream.cut_off

    async def _end_an_idle_one(self, share: str) -> None:
        """End an idle stream whose slot this ``share`` may have, and wait until it has ended.

        One of the share itself or of one that has more: of that which has most the longest idle.
        """
        held = self._slots.held
        since = asyncio.get_running_loop().time() - self._idle_seconds
        idle = [
            stream
            for stream in self._open
            if stream.idle_since <= since
            and (stream.share == share or held(stream.share) > held(share))
            and self._slots.has_room(share, without=stream.share)
        ]
        if idle:
            longest = min(idle, key=lambda stream: (-held(stream.share), stream.idle_since))
            longest.idle_since = math.inf  # another caller that looks meanwhile ends another one
            longest.cut(_idle(self._idle_seconds))
            await longest.closed.wait()

    def end(self) -> None:
        """Take no more messages: streams end with Unavailable when what they hold is answered."""
        self._ending = True
        for stream in self._open:
            stream.cut(_stopping())


class _Stream:
    """One call: what is in flight, and what is answered and not yet taken by the client."""

    def __init__(
        self,
        requests: AsyncIterator[classify_pb.StreamClassifyRequest],
        classify: Callable[
            [classify_pb.StreamClassifyRequest], Awaitable[classify_pb.ClassifyResponse]
        ],
        window: int,
        caller: Caller,
    ) -> None:
        self.share = caller.share
        self._limiter = caller.principal.limiter
        self._taken = 0
        self._requests = requests
        self._classify = classify
        self._window = window
        self._inside = 0
        self._left = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.messages = 0
        self.images = 0
        self.idle_since = asyncio.get_running_loop().time()
        """Since when nothing is asked and nothing is answered; infinite while something is."""
        self.cut_off: Unavailable | None = None
        """Why no more is read, though the client has not sent all."""
        self.closed = asyncio.Event()
        """Set when it has given its slot back."""
        self.answered: asyncio.Queue[tuple[classify_pb.StreamClassifyResponse, int] | None] = (
            asyncio.Queue()
        )
        """Answers, each with the images that it holds in the window; ends with None."""

    async def run(self) -> None:
        """Read and answer until the client has sent all and all is answered.

        Raises what ``requests`` raises.
        """
        try:
            async with asyncio.TaskGroup() as group:
                if self.cut_off is None:
                    self._reading = group.create_task(self._read(group))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._give(self._taken)  # of messages whose answers were never begun
            self.answered.put_nowait(None)

    def leave(self, images: int) -> None:
        """Give room back."""
        self._inside -= images
        self._left.set()
        if not self._inside:
            self.idle_since = asyncio.get_running_loop().time()

    def _give(self, images: int) -> None:
        self._taken -= images
        self._limiter.give(images)

    def cut(self, why: Unavailable) -> None:
        """Read no more; nothing changes if all was read."""
        if self._reading is None or self._reading.cancel():
            self.cut_off = why

    async def _read(self, group: asyncio.TaskGroup) -> None:
        async for message in self._requests:
            images = len(message.request.images)
            self.messages += 1
            self.images += images
            held = max(1, images)  # a message without images has an answer too
            self._inside += held
            self.idle_since = math.inf
            await self._limiter.wait(images)
            self._taken += images
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


def _idle(seconds: float) -> Unavailable:
    return Unavailable(
        f"the stream was idle for more than {seconds:g} s and another one needed its slot; "
        "open a new one when there is something to send",
        reason="STREAM_IDLE",
    )
