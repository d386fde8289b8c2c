"""Contract of the encoders: one suite for threads, for processes and for a GPU."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest
from structlog.testing import capture_logs
from support import pooling, tiny
from support.bad_images import bombs
from support.encoders import (
    BUSY_INFO,
    CORES,
    INFO,
    MODEL,
    PHOTOS,
    Harness,
    embedding,
    expected,
    make_encoder,
    started,
)
from support.pictures import picture

from topwork.errors import Corrupt, ImageError
from topwork.inputs.image import preprocess
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.agreement import LEAST_AGREEMENT
from topwork.runtime.backend import open_session
from topwork.serving.encoders import decoding, threads
from topwork.serving.encoders.encoder import NICE, Check, Encoded, Failed, Refused, Result
from topwork.serving.encoders.gpu import GpuEncoder
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.explanation.map_graph import with_maps
from topwork.storage.files import sha256

KINDS = ["threads", "processes", "gpu"]
BOMB = bombs(30_000, 30_000)["PNG"]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Yield the event loop of the shared encoders."""
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="module", params=KINDS)
def harness(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Harness]:
    """Yield an encoder that tests share."""
    context = started(make_encoder(request.param))
    yield runner.run(context.__aenter__())
    runner.run(context.__aexit__(None, None, None))


def tolerance(harness: Harness) -> float:
    """Return the relative difference of embeddings that is allowed: micro-batches are rounded."""
    return 1e-6 if isinstance(harness.encoder, GpuEncoder) else 0.0


def test_result_has_the_part_of_the_image_that_was_embedded(
    harness: Harness, runner: asyncio.Runner
) -> None:
    """In fractions of the upright image; preprocessed pixels are whole."""
    wide = runner.run(harness.encode(picture("blue", 1, size=(80, 40))))
    tall = runner.run(harness.encode(picture("blue", 1, size=(40, 160))))
    pixels = preprocess(PHOTOS[0], INFO.image_spec).tobytes()
    given = runner.run(harness.encode(pixels, pixels=True))
    assert [each.region for each in (wide, tall, given) if isinstance(each, Encoded)] == [
        (0.25, 0, 0.75, 1),
        (0, 0.375, 1, 0.625),
        (0, 0, 1, 1),
    ]


def test_rows_with_feature_maps_are_those_of_a_session(
    harness: Harness, runner: asyncio.Runner
) -> None:
    """For an encoder, the variant for explanations is one more backbone, with wide rows."""
    model, layout = with_maps(pooling.model())
    info = replace(pooling.info(pooling.model()), digest=sha256(model), width=layout.row_width)
    flower, _ = pooling.flower("blue", 1)

    async def scenario() -> Result:
        await harness.encoder.load(info, lambda: model)
        try:
            return await harness.encode(flower, digest=info.digest)
        finally:
            harness.encoder.unload(info.digest)

    (row,) = open_session(model, output="embedding").run(preprocess(flower, pooling.SPEC)[None])
    np.testing.assert_allclose(embedding(runner.run(scenario())), row, rtol=1e-5, atol=1e-6)


def test_embeddings_are_those_of_a_session(harness: Harness, runner: asyncio.Runner) -> None:
    """Every item gets its own embedding, on a CPU bit for bit, on one core and on all."""

    async def scenario() -> list[Result]:
        items = [
            harness.submit(photo, present=1 if number % 2 else 5)
            for number, photo in enumerate(PHOTOS)
        ]
        return [await harness.result(item) for item in items]

    for photo, result in zip(PHOTOS, runner.run(scenario()), strict=True):
        np.testing.assert_allclose(embedding(result), expected(photo), rtol=tolerance(harness))


def test_timings_are_those_of_the_stages(harness: Harness, runner: asyncio.Runner) -> None:
    """Decoding begins after the submission; stages take time, and less than the whole."""
    before = time.perf_counter()
    result = runner.run(harness.encode(PHOTOS[0], digest=BUSY_INFO.digest))
    whole = time.perf_counter() - before
    assert isinstance(result, Encoded)
    assert before < result.started < before + whole
    assert result.decoded > 0
    assert result.computed > result.decoded
    assert result.decoded + result.waited + result.computed < whole
    assert (result.run is not None) == isinstance(harness.encoder, GpuEncoder)


def test_preprocessed_pixels_are_embedded(harness: Harness, runner: asyncio.Runner) -> None:
    """Pixels of the backbone's size need no decoding."""
    pixels = preprocess(PHOTOS[3], INFO.image_spec)
    result = runner.run(harness.encode(pixels.tobytes(), pixels=True))
    np.testing.assert_allclose(embedding(result), expected(PHOTOS[3]), rtol=tolerance(harness))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image at all", "IMAGE_UNREADABLE"),
        (BOMB, "IMAGE_TOO_LARGE"),
        (b"", "IMAGE_UNREADABLE"),
    ],
    ids=["unreadable", "too large", "empty"],
)
def test_unusable_images_are_refused(
    harness: Harness, runner: asyncio.Runner, content: bytes, reason: str
) -> None:
    """The reason and the message are those of the decoder; the next image is embedded."""
    result = runner.run(harness.encode(content))
    assert isinstance(result, Refused)
    assert result.reason == reason
    assert "image" in result.message
    assert result.decoded >= 0
    assert isinstance(runner.run(harness.encode(PHOTOS[0])), Encoded)


def test_credits_are_spent_and_come_back(harness: Harness, runner: asyncio.Runner) -> None:
    """An idle encoder takes one to two items a core; each takes a credit until its result."""

    async def scenario() -> None:
        idle = harness.encoder.credits(0)
        assert CORES <= idle <= 2 * CORES
        items = []
        while harness.encoder.credits(0) > 0:
            items.append(harness.submit(PHOTOS[0], digest=BUSY_INFO.digest))
        assert len(items) == idle
        for item in items:
            await harness.result(item)
        assert harness.encoder.credits(0) == idle
        assert harness.encoder.credits(100) >= idle

    runner.run(scenario())


def test_items_are_encoded_in_order(harness: Harness, runner: asyncio.Runner) -> None:
    """Of more items than cores, the first ones begin first."""

    async def scenario() -> list[Result]:
        items = harness.submit_slow(2 * CORES)
        return [await harness.result(item) for item in items]

    starts = [result.started for result in runner.run(scenario()) if isinstance(result, Encoded)]
    assert len(starts) == 2 * CORES
    assert max(starts[:CORES]) < min(starts[CORES:])


def test_cancelled_item_in_reserve_is_dropped(harness: Harness, runner: asyncio.Runner) -> None:
    """Its result is Failed, those before and after it are embedded, and no credit is lost."""

    async def scenario() -> None:
        idle = harness.encoder.credits(0)
        items = harness.submit_slow(2 * CORES)
        harness.encoder.cancel(items[-1])
        harness.encoder.cancel(12345)  # of no item
        results = [await harness.result(item) for item in items]
        assert isinstance(results[-1], Failed)
        assert results[-1].stopping
        assert all(isinstance(result, Encoded) for result in results[:-1])
        harness.encoder.cancel(items[0])  # it has ended
        assert harness.encoder.credits(0) == idle

    runner.run(scenario())


def test_a_graph_that_is_damaged_is_corrupt(harness: Harness, runner: asyncio.Runner) -> None:
    """It is not loaded anywhere; the other backbones work on."""
    info = replace(INFO, digest="0" * 64)
    with pytest.raises(Corrupt, match="graph"):
        runner.run(harness.encoder.load(info, lambda: b"no graph"))
    assert isinstance(runner.run(harness.encode(PHOTOS[0])), Encoded)


def test_error_of_the_reader_is_raised(harness: Harness, runner: asyncio.Runner) -> None:
    """A backbone that cannot be read raises the error of the file system."""

    def read() -> bytes:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        runner.run(harness.encoder.load(replace(INFO, digest="1" * 64), read))


def test_backbone_lives_until_its_last_unload(harness: Harness, runner: asyncio.Runner) -> None:
    """A backbone that was loaded twice works after one unload."""

    async def scenario() -> None:
        await harness.encoder.load(INFO, lambda: MODEL)
        harness.encoder.unload(INFO.digest)
        assert isinstance(await harness.encode(PHOTOS[0]), Encoded)

    runner.run(scenario())


def test_last_unload_frees_the_backbone(harness: Harness, runner: asyncio.Runner) -> None:
    """After as many unloads as loads the graph is read again by the next load."""
    reads: list[str] = []

    def read() -> bytes:
        reads.append("read")
        return MODEL

    async def scenario() -> None:
        await harness.encoder.load(INFO, read)
        assert not reads
        harness.encoder.unload(INFO.digest)
        harness.encoder.unload(INFO.digest)
        await harness.encoder.load(INFO, read)
        assert reads
        assert isinstance(await harness.encode(PHOTOS[0]), Encoded)

    runner.run(scenario())


def test_error_of_a_run_is_a_failure(harness: Harness, runner: asyncio.Runner) -> None:
    """Pixels of another size fail alone."""
    with capture_logs():
        result = runner.run(harness.encode(b"123", pixels=True))
    assert isinstance(result, Failed)
    assert not result.stopping
    assert result.message
    assert isinstance(runner.run(harness.encode(PHOTOS[0])), Encoded)


@pytest.mark.parametrize(
    ("graph", "expected_range"),
    [(MODEL, (1.0, 1.0)), (tiny.saturating_backbone_model(), (0.0, LEAST_AGREEMENT))],
    ids=["equal", "saturating"],
)
def test_load_returns_the_agreement(
    harness: Harness,
    runner: asyncio.Runner,
    graph: bytes,
    expected_range: tuple[float, float],
) -> None:
    """A load compares the probe images' embeddings with the stored ones, on every core alike."""
    info = replace(tiny.quantised_info(graph), digest=sha256(b"checked" + graph))

    async def scenario() -> list[Check]:
        checks = [await harness.encoder.load(info, lambda: graph) for _ in range(2)]
        for _ in checks:
            harness.encoder.unload(info.digest)
        return checks

    first, again = runner.run(scenario())
    low, high = expected_range
    assert first.agreement is not None
    assert low <= first.agreement <= high
    assert first == again == Check(agreement=first.agreement, provider="CPUExecutionProvider")


def test_agreement_of_an_old_backbone_is_unknown(harness: Harness, runner: asyncio.Runner) -> None:
    """A backbone without expected embeddings is loaded as ever."""

    async def scenario() -> Check:
        try:
            return await harness.encoder.load(INFO, lambda: MODEL)
        finally:
            harness.encoder.unload(INFO.digest)

    assert runner.run(scenario()).agreement is None


@pytest.mark.parametrize("kind", KINDS)
def test_aclose_fails_all_items(kind: str) -> None:
    """Items without a result get Failed at the end, once."""

    async def scenario() -> None:
        async with started(make_encoder(kind)) as harness:
            items = harness.submit_slow(4)
        results = [harness.results[item] for item in items]
        assert any(isinstance(result, Failed) and result.stopping for result in results)
        assert not harness.encoder.works() or kind == "threads"
        await asyncio.sleep(0.05)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nice", [0, 10])
def test_encoders_add_niceness_to_that_of_the_server(kind: str, nice: int) -> None:
    """The event loop has priority, whatever the niceness of the server."""
    expected = min(os.nice(0) + nice + NICE, 19)
    code = """
import asyncio, os, sys, threading
from support import encoders
kind, nice, expected = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
async def scenario():
    async with encoders.started(encoders.make_encoder(kind)) as harness:
        if kind == "threads":
            found = [each.native_id for each in threading.enumerate() if "encoder" in each.name]
        else:
            found = encoders.pids(harness.encoder)
        assert len(found) == encoders.CORES
        assert {os.getpriority(os.PRIO_PROCESS, each) for each in found} == {expected}, found
if __name__ == "__main__":
    os.nice(nice)
    asyncio.run(scenario())
"""
    arguments = [kind, str(nice), str(expected)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)


# Threads


@pytest.mark.parametrize("ends", [True, False])
def test_aclose_joins_the_threads(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """aclose() waits for images in progress, but not for a thread that hangs."""
    begun, go_on = threading.Event(), threading.Event()

    def decode(*_: object, **__: object) -> NoReturn:
        begun.set()
        go_on.wait()
        raise ImageError("late")

    async def scenario() -> None:
        encoder = ThreadEncoder(provider="cpu", cores=1, limits=DEFAULT_LIMITS)
        harness = Harness(encoder)
        await encoder.start(harness.deliver, lambda: None)
        await encoder.load(INFO, lambda: MODEL)
        items = [harness.submit(photo) for photo in PHOTOS[:2]]
        await asyncio.to_thread(begun.wait)
        if ends:
            threading.Timer(0.1, go_on.set).start()
        with capture_logs() as logged:
            await encoder.aclose()
        assert [line["threads"] for line in logged] == ([] if ends else [["encoder-0"]])
        assert go_on.is_set() == ends
        assert any(thread.is_alive() for thread in encoder._threads) != ends
        go_on.set()
        assert all(isinstance(harness.results[item], Failed) for item in items)

    monkeypatch.setattr(threads, "JOIN_SECONDS", 30.0 if ends else 0.05)
    monkeypatch.setattr(decoding, "prepare", decode)
    asyncio.run(scenario())
