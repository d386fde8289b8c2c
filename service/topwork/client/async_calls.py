"""Calls of the client for asyncio: gRPC's task sends while the caller's task receives.

blocking_calls has the same functions for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc

from topwork.client import calls
from topwork.client.credentials import Credentials
from topwork.client.images import (
    ImageLike,
    LabelledImage,
    NamedImage,
    check_several,
    content,
    named,
    own_fields,
)
from topwork.client.inputs import Audio, Content, Embedding, Text, is_vector
from topwork.client.results import StreamResult
from topwork.client.server_status import ServerStatus
from topwork.client.stream_window import StreamWindow
from topwork.client.upload import P, UploadBatcher
from topwork.v1 import classifier_service_pb2 as classify_pb

T = TypeVar("T")
StreamMethod: TypeAlias = """grpc.aio.StreamStreamMultiCallable[
    classify_pb.StreamClassifyRequest, classify_pb.StreamClassifyResponse
]"""


def open_channel(address: str, credentials: Credentials) -> grpc.aio.Channel:
    """See blocking_calls."""
    options = [*calls.options_for(address), *credentials.channel_options()]
    if (secure := credentials.channel_credentials()) is not None:
        return grpc.aio.secure_channel(address, secure, options=options)
    return grpc.aio.insecure_channel(address, options=options)


async def wait_until_ready(
    channel: grpc.aio.Channel, address: str, seconds: float, *, tls: bool
) -> None:
    """See blocking_calls."""
    try:
        async with asyncio.timeout(seconds):
            await channel.channel_ready()
    except TimeoutError:
        unreachable = partial(calls.unreachable, address, seconds, tls=tls)
        raise await asyncio.to_thread(unreachable) from None


async def contents(
    images: Iterable[ImageLike] | AsyncIterable[ImageLike],
) -> list[Content]:
    """See blocking_calls."""
    check_several(images)
    return [await _content(image) async for image in _each(images)]


async def call_unary(
    method: Callable[..., Awaitable[T]], request: object, timeout: float | None = None
) -> T:
    """See blocking_calls."""
    try:
        return await method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise calls.failed(error) from error


async def pages(method: Callable[..., Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
    """See blocking_calls."""
    while True:
        page = await call_unary(method, request)
        yield page
        if not (token := page.next_page_token):
            return
        request.page_token = token


async def upload(
    method: grpc.aio.StreamUnaryMultiCallable[P, T],
    first: P,
    images: Iterable[NamedImage | LabelledImage] | AsyncIterable[NamedImage | LabelledImage],
    timeout: float | None,
) -> T:
    """See blocking_calls."""
    check_several(images)
    batcher = UploadBatcher(first)
    failure: Exception | None = None

    async def requests() -> AsyncIterator[P]:  # gRPC would report its errors as a cancellation
        nonlocal failure
        try:
            async for source in _each(images):
                plain, fields = own_fields(source)
                name, image = named(plain)
                message = batcher.add(name, await _content(image), **fields)
                if message is not None:
                    yield message
        except Exception as error:
            failure = error
            call.cancel()
        else:
            yield batcher.finish()

    call: grpc.aio.StreamUnaryCall[P, T] = method(requests(), timeout=timeout)
    status = ServerStatus(call)
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if failure is None or (task is not None and task.cancelling()):
            raise
        raise failure from None
    except grpc.RpcError as error:
        raise calls.failed(await status.of(error)) from error


async def stream(
    method: StreamMethod,
    images: Iterable[ImageLike] | AsyncIterable[ImageLike],
    window: StreamWindow,
) -> AsyncGenerator[StreamResult, None]:
    """See blocking_calls."""
    check_several(images)
    reopened = asyncio.Event()
    failure: Exception | None = None

    async def requests() -> AsyncIterator[classify_pb.StreamClassifyRequest]:
        nonlocal failure
        try:
            async for image in _each(images):
                if (message := window.add(await _content(image))) is not None:
                    yield message
                    while not window.is_open:
                        reopened.clear()
                        await reopened.wait()
        except Exception as error:
            failure = error
        if (last := window.finish()) is not None:
            yield last

    call = method(requests())
    status = ServerStatus(call)
    try:
        async for response in call:
            window.receive(response)
            while ready := window.take():
                reopened.set()
                for result in ready:
                    yield result
    except grpc.RpcError as error:
        raise calls.failed(await status.of(error)) from error
    finally:
        call.cancel()
    if failure is not None:
        raise failure
    window.check_complete()


async def _content(image: ImageLike) -> Content:
    """Return an image's content; a file, which may be on a network, is read in a thread."""
    if isinstance(image, bytes | Embedding | Text | Audio) or is_vector(image):
        return content(image)
    return await asyncio.to_thread(content, image)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
