"""Calls of the blocking client: a thread of gRPC's sends while the caller's thread receives.

async_calls has the same functions for asyncio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import starmap
from typing import TypeAlias, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2

from topwork.client import calls
from topwork.client.calls import CallFailed
from topwork.client.credentials import Credentials
from topwork.client.exchange import Exchange
from topwork.client.images import ImageSource, NamedImage, check_several, content, named
from topwork.client.results import StreamResult
from topwork.client.source import Source
from topwork.client.upload import P, UploadBatcher
from topwork.v1 import classifier_service_pb2 as classify_pb

T = TypeVar("T")
StreamMethod: TypeAlias = """grpc.StreamStreamMultiCallable[
    classify_pb.StreamClassifyRequest, classify_pb.StreamClassifyResponse
]"""


def open_channel(address: str, credentials: Credentials) -> grpc.Channel:
    """Return a channel with the client's options, whose calls bear no metadata."""
    return credentials.open_channel(address, calls.options_for(address))


def wait_until_ready(channel: grpc.Channel, address: str, seconds: float, *, tls: bool) -> None:
    """Return when the server can be reached. Raises CallFailed if it cannot in ``seconds``."""
    try:
        grpc.channel_ready_future(channel).result(timeout=seconds)
    except grpc.FutureTimeoutError:
        raise calls.unreachable(address, seconds, tls=tls) from None


def contents(images: Iterable[ImageSource]) -> list[bytes]:
    """Return the bytes of images. Raises OSError and TypeError."""
    check_several(images)
    return [content(image) for image in images]


def ask(method: Callable[..., T], request: object, timeout: float | None = None) -> T:
    """Return what a method of a stub answers. Raises CallFailed."""
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise calls.failed(error) from error


def upload(
    method: grpc.StreamUnaryMultiCallable[P, T],
    first: P,
    images: Iterable[NamedImage],
    timeout: float | None,
) -> T:
    """Return what a method answers to ``first`` and images.

    Raises CallFailed, and what ``images`` and their files raise: then the server does nothing.
    """
    check_several(images)
    begun = threading.Event()
    messages = UploadBatcher(first)

    def put(name: str, image: ImageSource) -> P | None:
        return messages.put(name, content(image))

    source = Source(starmap(put, map(named, images)))

    def sent() -> Iterator[P]:  # in a thread of gRPC's
        for message in source:
            if message is not None:
                yield message
        if source.exhausted:
            yield messages.end()
        else:
            begun.wait()
            call.cancel()  # an end would pass for the upload's own

    with source:
        call: grpc.Future[T] = method.future(sent(), timeout=timeout)
        begun.set()
        try:
            return call.result()
        except grpc.FutureCancelledError as error:
            if source.failure is not None:
                raise source.failure from None
            text = "this process ends before all was sent"
            raise CallFailed(status_pb2.Status(code=code_pb2.CANCELLED, message=text)) from error
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            call.cancel()  # for an interrupt


def stream(
    method: StreamMethod, images: Iterable[ImageSource], exchange: Exchange
) -> Generator[StreamResult, None, None]:
    """Yield one result an image, in order.

    Raises CallFailed, and what ``images`` and their files raise, after the results of the images
    before it.
    """
    check_several(images)
    changed = threading.Condition()
    closed = False

    def put(image: ImageSource) -> classify_pb.StreamClassifyRequest | None:
        encoded = content(image)
        with changed:
            return exchange.put(encoded)

    source = Source(map(put, images))

    def requests() -> Iterator[classify_pb.StreamClassifyRequest]:  # in a thread of gRPC's
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
