"""StreamClassify on the server: several messages in flight, each answered when it is ready."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import structlog

from topwork.access.principals import Caller
from topwork.access.slots import Slots
from topwork.errors import TopworkError, Unavailable
from topwork.inputs.kinds import AnyInput
from topwork.rpc.convert import fields, inputs
from topwork.rpc.convert.answers import to_classify_response
from topwork.serving.classify_batch import Classified
from topwork.serving.fair_queue import Flow
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.wire import status as statuses

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
"""Delay after which a client that was refused for too many streams may try again."""

IDLE_SECONDS = 60.0
"""Raising it lets idle streams keep their slots longer while others wait for one."""


class Engine(Protocol):
    """Classifies the images of messages; see Classifier."""

    async def classify(
        self,
        model: str,
        images: Sequence[AnyInput],
        *,
        revision: int,
        top_k: int,
        budget: float | None,
        flow: Flow | None,
        can_wait: bool,
        caller: str,
    ) -> Classified:
        """Return the predictions for images or embeddings, within ``budget`` seconds."""


class Streams:
    """All StreamClassify calls of a server: at most ``most_open`` at a time.

    A stream reads messages while fewer than ``window`` of its images are in flight. An image is in
    flight until the client has received its answer, so HTTP/2 flow control slows a client that
    writes too fast or never reads. Belongs to one event loop.
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
        """Yield the answer to each message as soon as it is ready.

        ``remaining`` returns the seconds until the call's deadline, None without one. A message
        about a model that the ``caller`` may not use fails alone. Raises Overloaded if too many
        streams are open, Unavailable if the server stops before the client has sent all, or if the
        stream was idle and another one needs its slot.
        """
        if self._ending:
            raise _stopping()
        if not self._slots.may_take(caller.share):
            await self._end_idle_stream(caller.share)
        flow = Flow()

        async def classify(
            message: classify_pb.StreamClassifyRequest,
        ) -> classify_pb.ClassifyResponse:
            request = message.request
            model = fields.model_id(request.model, field="model")
            caller.check(model)
            classified = await self._engine.classify(
                model,
                inputs.from_classify(request),
                revision=request.revision,
                top_k=request.top_k,
                budget=min([self._most_seconds, *_limits(message, remaining())]),
                flow=flow,
                can_wait=True,
                caller=caller.turns,
            )
            return to_classify_response(classified)

        stream = _Stream(requests, classify, self._window, caller)
        try:
            with self._slots.hold(caller.share):
                self._open.add(stream)
                work = asyncio.create_task(stream.run())
                try:
                    while (answered := await stream.answered.get()) is not None:
                        response, images = answered
                        yield response
                        stream.leave(images)  # gRPC has taken it
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

    async def _end_idle_stream(self, share: str) -> None:
        """End an idle stream whose slot ``share`` may take, and wait until it has ended.

        Candidates are streams of the share itself and of shares with more streams: first those of
        the share with the most streams, of these the one that has been idle longest.
        """
        held = self._slots.held
        since = asyncio.get_running_loop().time() - self._idle_seconds
        idle = [
            stream
            for stream in self._open
            if stream.idle_since <= since
            and (stream.share == share or held(stream.share) > held(share))
            and self._slots.may_take(share, without=stream.share)
        ]
        if idle:
            longest = min(idle, key=lambda stream: (-held(stream.share), stream.idle_since))
            longest.idle_since = math.inf  # another caller ends another stream meanwhile
            longest.cut(_idle(self._idle_seconds))
            await longest.closed.wait()

    def end(self) -> None:
        """Read no more messages: streams end with Unavailable after the answers in flight."""
        self._ending = True
        for stream in self._open:
            stream.cut(_stopping())


class _Stream:
    """One call: its messages in flight, and the answers that the client has not received."""

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
        self._charged = 0
        self._requests = requests
        self._classify = classify
        self._window = window
        self._in_flight = 0
        self._freed = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.messages = 0
        self.images = 0
        self.idle_since = asyncio.get_running_loop().time()
        """Time since which no message is in flight; infinite while one is."""
        self.cut_off: Unavailable | None = None
        """Reason why reading stopped before the client had sent all."""
        self.closed = asyncio.Event()
        """Set when the slot is free again."""
        self.answered: asyncio.Queue[tuple[classify_pb.StreamClassifyResponse, int] | None] = (
            asyncio.Queue()
        )
        """Answers, each with its number of images in the window; ends with None."""

    async def run(self) -> None:
        """Read and answer until the client has sent all messages and all are answered.

        Raises the errors of ``requests``.
        """
        try:
            async with asyncio.TaskGroup() as group:
                if self.cut_off is None:
                    self._reading = group.create_task(self._read(group))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._return_images(self._charged)  # of messages that were never classified
            self.answered.put_nowait(None)

    def leave(self, images: int) -> None:
        """Free the window of ``images``."""
        self._in_flight -= images
        self._freed.set()
        if not self._in_flight:
            self.idle_since = asyncio.get_running_loop().time()

    def _return_images(self, images: int) -> None:
        self._charged -= images
        self._limiter.give(images)

    def cut(self, why: Unavailable) -> None:
        """Stop reading, for the reason ``why``, unless all has been read."""
        if self._reading is None or self._reading.cancel():
            self.cut_off = why

    async def _read(self, group: asyncio.TaskGroup) -> None:
        async for message in self._requests:
            images = inputs.count(message.request)
            self.messages += 1
            self.images += images
            held = max(1, images)  # a message without images has an answer too
            self._in_flight += held
            self.idle_since = math.inf
            await self._limiter.wait(images)
            self._charged += images
            group.create_task(self._answer(message, held))
            while self._in_flight >= self._window:
                self._freed.clear()
                await self._freed.wait()

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
            self._return_images(inputs.count(message.request))
        self.answered.put_nowait((response, held))


def _limits(message: classify_pb.StreamClassifyRequest, remaining: float | None) -> Iterator[float]:
    """Yield the client's limits in seconds: for the call, and for this message."""
    if remaining is not None:
        yield remaining
    if message.HasField("timeout"):
        yield fields.seconds(message.timeout, field="timeout")


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping; send what was not answered again")


def _idle(seconds: float) -> Unavailable:
    return Unavailable(
        f"the stream was idle for more than {seconds:g} s and another one needed its slot; "
        "open a new one when there is something to send",
        reason="STREAM_IDLE",
    )
