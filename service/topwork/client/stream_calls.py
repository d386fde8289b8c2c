"""How the two clients hold a StreamClassify call: one thread or task sends while another takes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TypeAlias

import grpc

from topwork.client import calls
from topwork.client.exchange import Exchange, StreamResult
from topwork.client.source import Source
from topwork.v1 import classifier_service_pb2 as classify_pb

Requests: TypeAlias = Iterator[classify_pb.StreamClassifyRequest]
AsyncRequests: TypeAlias = AsyncIterator[classify_pb.StreamClassifyRequest]
Method: TypeAlias = """grpc.StreamStreamMultiCallable[
    classify_pb.StreamClassifyRequest, classify_pb.StreamClassifyResponse
]"""
AsyncMethod: TypeAlias = """grpc.aio.StreamStreamMultiCallable[
    classify_pb.StreamClassifyRequest, classify_pb.StreamClassifyResponse
]"""


def blocking(method: Method, images: Iterable[bytes], exchange: Exchange) -> Iterator[StreamResult]:
    """Yield one result an image, in order.

    Raises CallFailed, and what ``images`` raises, after the results of the images before it.
    """
    changed = threading.Condition()
    closed = False

    def put(image: bytes) -> classify_pb.StreamClassifyRequest | None:
        with changed:
            return exchange.put(image)

    source = Source(map(put, images))

    def requests() -> Requests:  # in a thread of gRPC's
        for message in source:
            if message is not None:
                yield message
                with changed:
                    changed.wait_for(lambda: closed or exchange.has_room)
            if closed:
                return
        with changed:
            last = exchange.end()
        if last is not None:
            yield last

    with source:
        call = method(requests())
        try:
            for response in call:
                with changed:
                    exchange.answer(response)
                while True:
                    with changed:
                        taken = exchange.take()
                        changed.notify()
                    if not taken:
                        break
                    yield from taken
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            with changed:
                closed = True
                changed.notify()
            call.cancel()
    if source.failure is not None:
        raise source.failure
    exchange.close()


async def for_asyncio(
    method: AsyncMethod, images: Iterable[bytes] | AsyncIterable[bytes], exchange: Exchange
) -> AsyncGenerator[StreamResult, None]:
    """See ``blocking``."""
    room = asyncio.Event()
    failure: Exception | None = None

    async def requests() -> AsyncRequests:
        nonlocal failure
        try:
            async for image in _each(images):
                if (message := exchange.put(image)) is not None:
                    yield message
                    while not exchange.has_room:
                        room.clear()
                        await room.wait()
        except Exception as error:
            failure = error
        if (last := exchange.end()) is not None:
            yield last

    call = method(requests())
    try:
        async for response in call:
            exchange.answer(response)
            while taken := exchange.take():
                room.set()
                for result in taken:
                    yield result
    except grpc.RpcError as error:
        raise calls.failed(error) from error
    finally:
        call.cancel()
    if failure is not None:
        raise failure
    exchange.close()


async def _each(images: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
