"""Streams of images over the wire: both clients, and a server that goes on serving others."""

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
BEYOND = MAX_IN_FLIGHT_IMAGES + 256
"""More images than a client and a server have in hand."""


def label(found: StreamResult) -> str:
    """Return the most probable label of an image that was classified."""
    assert found.result.error is None
    return found.result.predictions[0].label


def shown(count: int) -> list[int]:
    """Return which photo is the next, ``count`` times, without a pattern."""
    return [(7 * n * n + n // 3) % 4 for n in range(count)]


@pytest.mark.parametrize("images_per_message", [1, 3, 16, 1000])
def test_results_come_in_the_order_of_the_images(client: Client, images_per_message: int) -> None:
    """However messages are cut, beyond what the server takes too, the n-th result is the n-th's."""
    order = shown(50)
    stream = client.classify_stream(
        "colours", (PHOTOS[one] for one in order), images_per_message=images_per_message, top_k=1
    )
    found = list(stream)
    assert [label(one) for one in found] == [LABELS[one] for one in order]
    assert {one.revision for one in found} == {1}
    assert {len(one.result.predictions) for one in found} == {1}


def test_a_stream_says_what_classify_says(client: Client, server: Running) -> None:
    """Bad images included, results are those of Classify, from both clients and any source."""
    images = [*pictures("blue", 3), without_palette(), *pictures("green", 4), bytes(2**20 + 1)]
    asked = client.classify("colours", images).results

    async def source() -> AsyncIterator[bytes]:
        for image in images:
            yield image

    async def ask() -> list[list[StreamResult]]:
        async with AsyncClient(server.address) as own:
            return [
                [one async for one in own.classify_stream("colours", images)],
                [one async for one in own.classify_stream("colours", source())],
            ]

    for found in (list(client.classify_stream("colours", images)), *asyncio.run(ask())):
        assert [n for n, one in enumerate(found) if one.result.error] == [3, 8]
        for got, wanted in zip(found, asked, strict=True):
            one, other = got.result.error, wanted.error
            assert (one and (one.code, one.reason)) == (other and (other.code, other.reason))
            for mine, theirs in zip(got.result.predictions, wanted.predictions, strict=True):
                assert mine.label == theirs.label
                assert mine.probability == pytest.approx(theirs.probability, abs=1e-6)


def test_no_image_is_no_result(client: Client) -> None:
    """A source without images is a stream without results."""
    assert list(client.classify_stream("colours", [])) == []


def test_ten_thousand_images(client: Client) -> None:
    """Far more images than are in flight at a time go through one stream, each answered once."""
    order = shown(10_000)
    stream = client.classify_stream("colours", (PHOTOS[one] for one in order), top_k=1)
    for one, found in zip(order, stream, strict=True):
        assert label(found) == LABELS[one]


def test_ten_thousand_images_from_asyncio(server: Running) -> None:
    """The same with the client for asyncio."""

    async def ask() -> list[str]:
        async with AsyncClient(server.address) as own:
            images = (PHOTOS[one] for one in shown(10_000))
            return [label(one) async for one in own.classify_stream("colours", images, top_k=1)]

    assert asyncio.run(ask()) == [LABELS[one] for one in shown(10_000)]


def endless(taken: list[int]) -> Iterator[bytes]:
    """Yield photos without end, and count them in ``taken[0]``."""
    for number in itertools.count():
        taken[0] = number + 1
        yield PHOTOS[number % 4]


def test_an_endless_source_is_taken_as_results_are(client: Client) -> None:
    """The source is never further ahead than the bound, also while nobody takes results."""
    taken = [0]
    with closing(client.classify_stream("colours", endless(taken))) as stream:
        for number, _ in enumerate(itertools.islice(stream, 1000), 1):
            # Results that were handed over together are no longer in flight: one bound for these.
            assert taken[0] <= number + 2 * MAX_IN_FLIGHT_IMAGES + IMAGES_PER_MESSAGE


def test_an_endless_source_of_asyncio(server: Running) -> None:
    """The same with the client for asyncio."""

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
    """What the source of a test raises."""


def broken(after: int) -> Iterator[bytes]:
    """Yield some photos, then fail."""
    yield from itertools.islice(itertools.cycle(PHOTOS), after)
    raise BrokenError


def test_a_source_that_fails_fails_after_its_images(client: Client, server: Running) -> None:
    """What the source raises comes out after the results of all images that it gave."""
    stream = client.classify_stream("colours", broken(21))
    found = [label(one) for one in itertools.islice(stream, 21)]
    assert found == [LABELS[n % 4] for n in range(21)]
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


def test_a_model_that_is_not_there(client: Client) -> None:
    """What the request lacks is the call's failure, as in Classify."""
    error = failure(lambda: list(client.classify_stream("unknown", PHOTOS)))
    assert (error.code, error.reason) == ("NOT_FOUND", "NOT_FOUND")
    error = failure(lambda: list(client.classify_stream("colours", PHOTOS, revision=9)))
    assert error.code == "NOT_FOUND"
    assert "revisions/9" in str(error)


def test_a_timeout_is_each_messages(client: Client) -> None:
    """A message that takes longer than its timeout ends the stream as DEADLINE_EXCEEDED."""
    large = encode(Image.new("RGB", (4000, 4000)))  # takes far longer to decode
    error = failure(lambda: list(client.classify_stream("colours", [large] * 20, timeout=0.01)))
    assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_PASSED")
    many = client.classify_stream("colours", itertools.chain(*[PHOTOS] * 100), timeout=30.0)
    assert len(list(many)) == 400


def test_an_error_in_the_middle_spares_the_rest(channel: grpc.Channel) -> None:
    """Over the bare contract: a message for another model fails by itself, details and all."""
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
    answers = {one.id: one for one in stub.StreamClassify(iter(messages))}
    assert set(answers) == {10, 11, 12}
    assert answers[11].error.code == code_pb2.NOT_FOUND
    assert len(answers[11].error.details) == 2
    for number in (10, 12):
        assert answers[number].response.results[0].HasField("classification")


def test_streams_that_are_left_leave_nothing_behind(idle: Running) -> None:
    """After clients that stopped in the middle all the server's room is there again."""
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
                return bool(own.classify("colours", PHOTOS * 2).results)  # as many as have room
            return False

        servers.eventually(answered)


def message(number: int) -> classify_pb.StreamClassifyRequest:
    """Return a message of the bare contract."""
    request = classify_pb.ClassifyRequest(model="models/colours", images=PHOTOS)
    return classify_pb.StreamClassifyRequest(id=number, request=request)


def test_a_stream_waits_for_room(idle: Running) -> None:
    """Two streams with more in flight than the server has room for are both answered in full."""
    found: dict[int, int] = {}

    def run(number: int) -> None:
        with Client(idle.address) as own:
            images = itertools.chain(*[PHOTOS] * 50)
            found[number] = len(list(own.classify_stream("colours", images)))

    threads = [threading.Thread(target=run, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(servers.PATIENCE)
    assert found == {0: 200, 1: 200}


def test_a_server_that_stops_ends_its_streams(colours: Repository) -> None:
    """On SIGTERM results of what was taken come in order, then UNAVAILABLE; status 0, no wait."""
    with (
        servers.running(colours.root, grace_seconds=10 * servers.PATIENCE, worker=False) as server,
        Client(server.address) as client,
    ):
        found: list[Any] = []

        def read() -> None:
            for number, one in enumerate(client.classify_stream("colours", endless([0]))):
                found.append((LABELS[number % 4], label(one)))
                if number == 100:
                    server.process.terminate()

        error = failure(read)
        assert (error.code, error.reason) == ("UNAVAILABLE", "UNAVAILABLE")
        assert server.process.wait(servers.PATIENCE) == 0
    assert len(found) > 100
    assert all(wanted == got for wanted, got in found)


@pytest.mark.parametrize("end", ["closed", "broken"])
def test_a_server_ends_well_after_a_stream_that_was_left(tmp_path: Path, end: str) -> None:
    """SIGTERM amid the work of a stream that its client has left is status 0, each of ten times.

    The threads are in native code then: one that comes back to an interpreter which has ended
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
