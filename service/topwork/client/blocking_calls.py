"""Calls of the blocking client: gRPC's thread sends while the caller's thread receives.

async_calls has the same functions for asyncio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2

from topwork.client import calls
from topwork.client.calls import CallFailed
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
from topwork.client.inputs import Content
from topwork.client.results import StreamResult
from topwork.client.source import Source
from topwork.client.stream_window import StreamWindow
from topwork.client.upload import P, UploadBatcher
from topwork.v1 import classifier_service_pb2 as classify_pb

T = TypeVar("T")
StreamMethod: TypeAlias = """grpc.StreamStreamMultiCallable[
    classify_pb.StreamClassifyRequest, classify_pb.StreamClassifyResponse
]"""


def open_channel(address: str, credentials: Credentials) -> grpc.Channel:
    """Return a channel with the client's options, without the metadata of calls."""
    return credentials.open_channel(address, calls.options_for(address))


def wait_until_ready(channel: grpc.Channel, address: str, seconds: float, *, tls: bool) -> None:
    """Wait until the server can be reached. Raises CallFailed after ``seconds``."""
    try:
        grpc.channel_ready_future(channel).result(timeout=seconds)
    except grpc.FutureTimeoutError:
        raise calls.unreachable(address, seconds, tls=tls) from None


def contents(images: Iterable[ImageLike]) -> list[Content]:
    """Return the bytes of images. Raises OSError and TypeError."""
    check_several(images)
    return [content(image) for image in images]


def call_unary(method: Callable[..., T], request: object, timeout: float | None = None) -> T:
    """Return the response of a stub's method. Raises CallFailed."""
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise calls.failed(error) from error


def pages(method: Callable[..., Any], request: Any) -> Iterator[Any]:
    """Yield the pages of a list. Raises CallFailed."""
    while True:
        page = call_unary(method, request)
        yield page
        if not (token := page.next_page_token):
            return
        request.page_token = token


def upload(
    method: grpc.StreamUnaryMultiCallable[P, T],
    first: P,
    images: Iterable[NamedImage | LabelledImage],
    timeout: float | None,
) -> T:
    """Return the response to an upload of ``first`` and images.

    Raises CallFailed, and the errors of ``images`` and their files, which cancel the upload.
    """
    check_several(images)
    begun = threading.Event()
    batcher = UploadBatcher(first)

    def add(source: NamedImage | LabelledImage) -> P | None:
        plain, fields = own_fields(source)
        name, image = named(plain)
        return batcher.add(name, content(image), **fields)

    source = Source(map(add, images))

    def requests() -> Iterator[P]:  # in gRPC's thread
        for message in source:
            if message is not None:
                yield message
        if source.exhausted:
            yield batcher.finish()
        else:
            begun.wait()
            call.cancel()  # the server would take an end for a complete upload

    with source:
        call: grpc.Future[T] = method.future(requests(), timeout=timeout)
        begun.set()
        try:
            return call.result()
        except grpc.FutureCancelledError as error:
            if source.failure is not None:
                raise source.failure from None
            text = "this process ended before the upload was complete"
            raise CallFailed(status_pb2.Status(code=code_pb2.CANCELLED, message=text)) from error
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            call.cancel()  # after an interrupt, such as Ctrl-C


def stream(
    method: StreamMethod, images: Iterable[ImageLike], window: StreamWindow
) -> Generator[StreamResult, None, None]:
    """Yield the result of each image, in order.

    Raises CallFailed, and the errors of ``images`` and their files, after the results of the images
    before.
    """
    check_several(images)
    changed = threading.Condition()
    closed = False

    def add(image: ImageLike) -> classify_pb.StreamClassifyRequest | None:
        encoded = content(image)
        with changed:
            return window.add(encoded)

    source = Source(map(add, images))

    def requests() -> Iterator[classify_pb.StreamClassifyRequest]:  # in gRPC's thread
        for message in source:
            if message is not None:
                yield message
                with changed:
                    changed.wait_for(lambda: closed or window.is_open)
            if closed:
                return
        with changed:
            last = window.finish()
        if last is not None:
            yield last

    with source:
        call = method(requests())
        try:
            for response in call:
                with changed:
                    window.receive(response)
                while True:
                    with changed:
                        ready = window.take()
                        changed.notify()
                    if not ready:
                        break
                    yield from ready
        except grpc.RpcError as error:
            raise calls.failed(error) from error
        finally:
            with changed:
                closed = True
                changed.notify()
            call.cancel()
    if source.failure is not None:
        raise source.failure
    window.check_complete()
