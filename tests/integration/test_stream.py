"""StreamClassify over the wire: both clients, backpressure, errors and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from PIL import Image
from support import servers, tiny
from support.bad_images import without_palette
from support.pictures import encode, picture, pictures
from support.servers import Running, failure

from topwork import AsyncClient, CallFailed, Client, StreamResult
from topwork.bundle.store import Repository
from topwork.client.stream_window import IMAGES_PER_MESSAGE, MAX_IN_FLIGHT_IMAGES
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc

LABELS = ["amber", "blue", "crimson", "green"]
PHOTOS = [picture(label, 40) for label in LABELS]
GRACE = 10.0


def label(image: StreamResult) -> str:
    """Return the most probable label of a classified image."""
    assert image.result.error is None
    return image.result.predictions[0].label


def shown(count: int) -> list[int]:
    """Return ``count`` indices of PHOTOS in an irregular order."""
    return [(7 * n * n + n // 3) % 4 for n in range(count)]


@pytest.mark.parametrize("images_per_message", [1, 3, 16, 1000])
def test_results_come_in_the_order_of_the_images(client: Client, images_per_message: int) -> None:
    """Results are in the order of images for any number of images in a message."""
    order = shown(50)
    stream = client.classify_stream(
        "colours",
        (PHOTOS[index] for index in order),
        images_per_message=images_per_message,
        top_k=1,
    )
    results = list(stream)
    assert [label(image) for image in results] == [LABELS[index] for index in order]
    assert {image.revision for image in results} == {1}
    assert {len(image.result.predictions) for image in results} == {1}


def test_classify_stream_agrees_with_classify(client: Client, server: Running) -> None:
    """Results and errors are those of Classify, from both clients and any source."""
    images = [*pictures("blue", 3), without_palette(), *pictures("green", 4), bytes(2**20 + 1)]
    classified = client.classify("colours", images).results

    async def source() -> AsyncIterator[bytes]:
        for image in images:
            yield image

    async def ask() -> list[list[StreamResult]]:
        async with AsyncClient(server.address) as own:
            return [
                [image async for image in own.classify_stream("colours", images)],
                [image async for image in own.classify_stream("colours", source())],
            ]

    for results in (list(client.classify_stream("colours", images)), *asyncio.run(ask())):
        assert [n for n, image in enumerate(results) if image.result.error] == [3, 8]
        for got, wanted in zip(results, classified, strict=True):
            error, other = got.result.error, wanted.error
            assert (error and (error.code, error.reason)) == (other and (other.code, other.reason))
            for mine, theirs in zip(got.result.predictions, wanted.predictions, strict=True):
                assert mine.label == theirs.label
                assert mine.probability == pytest.approx(theirs.probability, abs=1e-6)


def test_a_stream_without_images_has_no_results(client: Client) -> None:
    """A source without images is a stream without results."""
    assert list(client.classify_stream("colours", [])) == []


def test_ten_thousand_images(client: Client) -> None:
    """A stream of far more images than are in flight answers each once."""
    order = shown(10_000)
    stream = client.classify_stream("colours", (PHOTOS[index] for index in order), top_k=1)
    for index, image in zip(order, stream, strict=True):
        assert label(image) == LABELS[index]


def test_ten_thousand_images_from_asyncio(server: Running) -> None:
    """A stream of the asyncio client answers each of very many images once."""

    async def ask() -> list[str]:
        async with AsyncClient(server.address) as own:
            images = (PHOTOS[index] for index in shown(10_000))
            return [label(image) async for image in own.classify_stream("colours", images, top_k=1)]

    assert asyncio.run(ask()) == [LABELS[index] for index in shown(10_000)]


def endless(taken: list[int]) -> Iterator[bytes]:
    """Yield photos without end, and count them in ``taken[0]``."""
    for number in itertools.count():
        taken[0] = number + 1
        yield PHOTOS[number % 4]


def test_an_endless_source_is_read_as_results_are_read(client: Client) -> None:
    """The source is never read further ahead than the bound, even if no results are read."""
    taken = [0]
    with closing(client.classify_stream("colours", endless(taken))) as stream:
        for number, _ in enumerate(itertools.islice(stream, 1000), 1):
            # Twice the bound: results delivered together are no longer in flight.
            assert taken[0] <= number + 2 * MAX_IN_FLIGHT_IMAGES + IMAGES_PER_MESSAGE


def test_an_endless_source_of_asyncio(server: Running) -> None:
    """The asyncio client never reads the source further ahead than the bound."""

    async def ask() -> None:
        taken = [0]
        async with (
            AsyncClient(server.address) as own,
            aclosing(own.classify_stream("colours", endless(taken))) as stream,
        ):
            for number in range(1, 1000):
                await anext(stream)
                assert taken[0] <= number + 2 * MAX_IN_FLIGHT_IMAGES + IMAGES_PER_MESSAGE

    asyncio.run(ask())


class BrokenError(Exception):
    """Raised by a source of images."""


def broken(after: int) -> Iterator[bytes]:
    """Yield some photos, then fail."""
    yield from itertools.islice(itertools.cycle(PHOTOS), after)
    raise BrokenError


def test_an_error_of_the_source_follows_its_results(client: Client, server: Running) -> None:
    """An error of the source is raised after the results of all its images."""
    stream = client.classify_stream("colours", broken(21))
    labels = [label(image) for image in itertools.islice(stream, 21)]
    assert labels == [LABELS[n % 4] for n in range(21)]
    with pytest.raises(BrokenError):
        next(stream)

    async def ask() -> None:
        async with AsyncClient(server.address) as own:
            from_asyncio = own.classify_stream("colours", broken(21))
            for _ in range(21):
                await anext(from_asyncio)
            with pytest.raises(BrokenError):
                await anext(from_asyncio)

    asyncio.run(ask())


def test_a_stream_for_an_unknown_model_is_not_found(client: Client) -> None:
    """An unknown model or revision fails the call, as in Classify."""
    error = failure(lambda: list(client.classify_stream("unknown", PHOTOS)))
    assert (error.code, error.reason) == ("NOT_FOUND", "NOT_FOUND")
    error = failure(lambda: list(client.classify_stream("colours", PHOTOS, revision=9)))
    assert error.code == "NOT_FOUND"
    assert "revisions/9" in str(error)


def test_a_timeout_applies_to_each_message(client: Client) -> None:
    """A message that takes longer than its timeout ends the stream as DEADLINE_EXCEEDED."""
    large = encode(Image.new("RGB", (4000, 4000)))  # takes far longer to decode
    error = failure(lambda: list(client.classify_stream("colours", [large] * 20, timeout=0.01)))
    assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_PASSED")
    many = client.classify_stream("colours", itertools.chain(*[PHOTOS] * 100), timeout=30.0)
    assert len(list(many)) == 400


def test_an_error_of_a_message_does_not_end_the_stream(channel: grpc.Channel) -> None:
    """Over a bare stub a message for an unknown model fails alone, with details."""
    stub = classify_grpc.ClassifierServiceStub(channel)
    messages = [
        classify_pb.StreamClassifyRequest(
            id=number,
            request=classify_pb.ClassifyRequest(
                model=f"models/{'unknown' if number == 11 else 'colours'}", images=[PHOTOS[0]]
            ),
        )
        for number in (10, 11, 12)
    ]
    answers = {answer.id: answer for answer in stub.StreamClassify(iter(messages))}
    assert set(answers) == {10, 11, 12}
    assert answers[11].error.code == code_pb2.NOT_FOUND
    assert len(answers[11].error.details) == 2
    for number in (10, 12):
        assert answers[number].response.results[0].HasField("classification")


def test_abandoned_streams_free_their_capacity(idle: Running) -> None:
    """After clients abandoned their streams the server's whole queue is free again."""
    with Client(idle.address) as own:
        for number in range(8):
            with closing(own.classify_stream("colours", endless([0]))) as stream:
                for _ in itertools.islice(stream, 5 * number + 1):
                    pass
        with grpc.insecure_channel(idle.address) as channel:
            call = classify_grpc.ClassifierServiceStub(channel).StreamClassify(
                iter([message(n) for n in range(30)])
            )
            next(call)
            call.cancel()

        def answered() -> bool:
            with contextlib.suppress(CallFailed):
                return bool(own.classify("colours", PHOTOS * 2).results)  # the whole queue
            return False

        servers.eventually(answered)


def message(number: int) -> classify_pb.StreamClassifyRequest:
    """Return a request of StreamClassify."""
    request = classify_pb.ClassifyRequest(model="models/colours", images=PHOTOS)
    return classify_pb.StreamClassifyRequest(id=number, request=request)


def test_a_stream_waits_for_free_capacity(idle: Running) -> None:
    """Two streams with more in flight than the server's queue holds are both answered."""
    counts: dict[int, int] = {}

    def run(number: int) -> None:
        with Client(idle.address) as own:
            images = itertools.chain(*[PHOTOS] * 50)
            counts[number] = len(list(own.classify_stream("colours", images)))

    threads = [threading.Thread(target=run, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(servers.TIMEOUT)
    assert counts == {0: 200, 1: 200}


def test_sigterm_ends_streams_with_unavailable(colours: Repository) -> None:
    """On SIGTERM a stream gets the results of accepted images in order, then UNAVAILABLE."""
    with (
        servers.running(colours.root, grace_seconds=10 * servers.TIMEOUT, worker=False) as server,
        Client(server.address) as client,
    ):
        labels: list[Any] = []

        def read() -> None:
            for number, image in enumerate(client.classify_stream("colours", endless([0]))):
                labels.append((LABELS[number % 4], label(image)))
                if number == 100:
                    server.process.terminate()

        error = failure(read)
        assert (error.code, error.reason) == ("UNAVAILABLE", "UNAVAILABLE")
        assert server.process.wait(servers.TIMEOUT) == 0
    assert len(labels) > 100
    assert all(wanted == got for wanted, got in labels)


@pytest.mark.parametrize("end", ["closed", "broken"])
def test_a_server_exits_cleanly_after_an_abandoned_stream(tmp_path: Path, end: str) -> None:
    """SIGTERM during the work of an abandoned stream ends with status 0, each of ten times.

    The threads are in native code then: a thread that returns to an interpreter which has ended
    aborts the process.
    """
    repository = Repository(tmp_path / "repository")
    labels = ("amber", "blue")
    exemplars = tiny.embed_pictures({label: pictures(label, 12) for label in labels})
    tiny.publish(repository, "colours", exemplars, backbone=tiny.busy_backbone_model())

    def leave(_: int) -> tuple[int, float]:
        with servers.running(repository.root, worker=False, grace_seconds=GRACE) as server:
            with Client(server.address) as client:
                stream = client.classify_stream("colours", endless([0]), images_per_message=2)
                next(stream)
                if end == "broken":
                    client.close()
                else:
                    stream.close()
                before = time.monotonic()
                status = server.stop()
            return status, time.monotonic() - before

    with ThreadPoolExecutor(3) as pool:
        statuses, seconds = zip(*pool.map(leave, range(10)), strict=True)
    assert set(statuses) == {0}
    assert max(seconds) < GRACE
