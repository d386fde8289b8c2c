"""Contract of the encoders: one suite for threads and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs
from support import tiny
from support.bad_images import bombs
from support.pictures import picture

from topwork.bundle.files import sha256
from topwork.errors import Corrupt, ImageError
from topwork.inputs.image import preprocess
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.agreement import LEAST_AGREEMENT
from topwork.runtime.backend import open_session
from topwork.serving.encoders import decoding, process_pool, threads
from topwork.serving.encoders.encoder import (
    NICE,
    Check,
    Encoded,
    Encoder,
    Failed,
    Item,
    Refused,
    Result,
)
from topwork.serving.encoders.encoder_process import EncoderProcess
from topwork.serving.encoders.process_pool import MOST_GROWTH
from topwork.serving.encoders.processes import ProcessEncoder
from topwork.serving.encoders.threads import ThreadEncoder

T = TypeVar("T")

CORES = 2
MODEL = tiny.backbone_model()
INFO = tiny.backbone_info(MODEL)
BUSY = tiny.busy_backbone_model()
BUSY_INFO = tiny.backbone_info(BUSY)
PHOTOS = [picture("blue", number) for number in range(8)]
BOMB = bombs(30_000, 30_000)["PNG"]
ENCODERS: dict[str, Callable[[], Encoder]] = {
    "threads": lambda: ThreadEncoder(provider="cpu", cores=CORES, limits=DEFAULT_LIMITS),
    "processes": lambda: make_processes(MOST_GROWTH),
}


def make_processes(most_growth: int) -> ProcessEncoder:
    """Return an encoder with processes."""
    return ProcessEncoder(
        provider="cpu",
        cores=CORES,
        limits=DEFAULT_LIMITS,
        log_format="text",
        most_growth=most_growth,
    )


class Harness:
    """Encoder with the results that it has delivered."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.results: dict[int, Result] = {}
        self._next = 0

    def deliver(self, result: Result) -> None:
        """Note a result; each item has one."""
        assert result.id not in self.results
        self.results[result.id] = result

    def submit(
        self, content: bytes, *, digest: str = INFO.digest, pixels: bool = False, present: int = 2
    ) -> int:
        """Submit an image, and return its item."""
        self._next += 1
        item = Item(id=self._next, backbone=digest, content=content, pixels=pixels)
        self.encoder.submit(item, present=present)
        return self._next

    async def result(self, item: int) -> Result:
        """Wait for an item's result."""
        await until(lambda: item in self.results)
        return self.results[item]

    async def encode(self, content: bytes, **options: Any) -> Result:
        """Return the result of an image."""
        return await self.result(self.submit(content, **options))


async def until(condition: Callable[[], Any]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # of another thread or process
            await asyncio.sleep(0.002)


@asynccontextmanager
async def started(encoder: Encoder) -> AsyncIterator[Harness]:
    """Yield an encoder with the tiny backbone and a slow one, and start it."""
    harness = Harness(encoder)
    await harness.encoder.start(harness.deliver, lambda: None)
    try:
        await harness.encoder.load(INFO, lambda: MODEL)
        await harness.encoder.load(BUSY_INFO, lambda: BUSY)
        yield harness
    finally:
        await harness.encoder.aclose()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Yield the event loop of the shared encoders."""
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="module", params=list(ENCODERS))
def harness(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Harness]:
    """Yield an encoder that tests share."""
    context = started(ENCODERS[request.param]())
    yield runner.run(context.__aenter__())
    runner.run(context.__aexit__(None, None, None))


def embedding(result: Result) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an item's embedding."""
    assert isinstance(result, Encoded), result
    return np.frombuffer(result.embedding, dtype=np.float32)


def expected(content: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the embedding that ONNX Runtime gives."""
    pixels = preprocess(content, INFO.preprocess)
    rows = open_session(MODEL, output="embedding").run(pixels[None])
    return np.asarray(rows[0])


def test_embeddings_are_those_of_a_session(harness: Harness, runner: asyncio.Runner) -> None:
    """Every item gets its own embedding, bit for bit, on one core and on all."""

    async def scenario() -> list[Result]:
        items = [
            harness.submit(photo, present=1 if number % 2 else 5)
            for number, photo in enumerate(PHOTOS)
        ]
        return [await harness.result(item) for item in items]

    for photo, result in zip(PHOTOS, runner.run(scenario()), strict=True):
        np.testing.assert_array_equal(embedding(result), expected(photo))


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
    assert result.run is None


def test_preprocessed_pixels_are_embedded(harness: Harness, runner: asyncio.Runner) -> None:
    """Pixels of the backbone's size need no decoding."""
    pixels = preprocess(PHOTOS[3], INFO.preprocess)
    result = runner.run(harness.encode(pixels.tobytes(), pixels=True))
    np.testing.assert_array_equal(embedding(result), expected(PHOTOS[3]))


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
        items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS[: 2 * CORES]]
        return [await harness.result(item) for item in items]

    starts = [result.started for result in runner.run(scenario()) if isinstance(result, Encoded)]
    assert len(starts) == 2 * CORES
    assert max(starts[:CORES]) < min(starts[CORES:])


def test_cancelled_item_in_reserve_is_dropped(harness: Harness, runner: asyncio.Runner) -> None:
    """Its result is Failed, those before and after it are embedded, and no credit is lost."""

    async def scenario() -> None:
        idle = harness.encoder.credits(0)
        items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS[: 2 * CORES]]
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


@pytest.mark.parametrize("kind", ENCODERS)
def test_aclose_fails_all_items(kind: str) -> None:
    """Items without a result get Failed at the end, once."""

    async def scenario() -> None:
        async with started(ENCODERS[kind]()) as harness:
            items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS[:4]]
        results = [harness.results[item] for item in items]
        assert any(isinstance(result, Failed) and result.stopping for result in results)
        assert not harness.encoder.works() or kind == "threads"
        await asyncio.sleep(0.05)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("nice", [0, 10])
def test_encoders_add_niceness_to_that_of_the_server(kind: str, nice: int) -> None:
    """The event loop has priority, whatever the niceness of the server."""
    expected = min(os.nice(0) + nice + NICE, 19)
    code = """
import asyncio, os, sys, threading
sys.path.insert(0, sys.argv[1])
import test_encoders
kind, nice, expected = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
async def scenario():
    async with test_encoders.started(test_encoders.ENCODERS[kind]()) as harness:
        if kind == "threads":
            found = [each.native_id for each in threading.enumerate() if "encoder" in each.name]
        else:
            found = test_encoders.pids(harness.encoder)
        assert len(found) == test_encoders.CORES
        assert {os.getpriority(os.PRIO_PROCESS, each) for each in found} == {expected}, found
if __name__ == "__main__":
    os.nice(nice)
    asyncio.run(scenario())
"""
    here = str(Path(__file__).parent)
    arguments = [here, kind, str(nice), str(expected)]
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
    monkeypatch.setattr(decoding, "preprocess", decode)
    asyncio.run(scenario())


# Processes


@asynccontextmanager
async def process_encoder(
    most_growth: int = MOST_GROWTH,
) -> AsyncIterator[tuple[Harness, ProcessEncoder]]:
    """Yield a started encoder with processes."""
    encoder = make_processes(most_growth)
    async with started(encoder) as harness:
        yield harness, encoder


def pids(encoder: ProcessEncoder) -> list[int]:
    """Return the process ids of the processes that work."""
    return [process.pid for process in encoder._processes if process.works()]


def is_free_of(process: EncoderProcess, item: int) -> bool:
    """Return True if a process does not have an item."""
    return item not in process.items


def is_prepared(process: EncoderProcess) -> bool:
    """Return True while a process loads its backbones."""
    return bool(process._loads)


def test_items_of_a_killed_process_go_to_another() -> None:
    """After SIGKILL of a process all items are embedded, and a new process works soon."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            first = pids(encoder)
            items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS[:4]]
            await asyncio.sleep(0.03)
            os.kill(first[0], signal.SIGKILL)
            for item in items:
                assert isinstance(await harness.result(item), Encoded)
            assert encoder.works()
            await until(lambda: len(pids(encoder)) == CORES)
            assert len({*first, *pids(encoder)}) == CORES + 1
            assert isinstance(await harness.encode(PHOTOS[0]), Encoded)

    with capture_logs() as lines:
        asyncio.run(scenario())
    [died] = [line for line in lines if line["event"] == "worker died"]
    assert died["process"].startswith("topwork-encoder")


def test_items_wait_while_no_process_lives() -> None:
    """All processes are killed at once; the items are embedded after their restart."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            for pid in pids(encoder):
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not encoder.works())
            assert encoder.credits(0) == 0
            item = harness.submit(PHOTOS[0])
            dropped = harness.submit(PHOTOS[1])
            harness.encoder.cancel(dropped)
            assert isinstance(harness.results[dropped], Failed)
            assert isinstance(await harness.result(item), Encoded)

    with capture_logs():
        asyncio.run(scenario())


def test_image_at_work_in_two_deaths_is_refused() -> None:
    """It is logged by its digest; the items beside it are embedded."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            deadly = harness.submit(PHOTOS[0], digest=BUSY_INFO.digest)
            beside = harness.submit(PHOTOS[1], digest=BUSY_INFO.digest)
            reserve = harness.submit(PHOTOS[2])
            while deadly not in harness.results:
                for process in encoder._processes:
                    if process._at_work() == deadly:
                        os.kill(process.pid, signal.SIGKILL)
                        await until(partial(is_free_of, process, deadly))
                await asyncio.sleep(0.001)
            assert getattr(harness.results[deadly], "reason", "") == "ENCODER_DIED"
            assert isinstance(await harness.result(beside), Encoded)
            assert isinstance(await harness.result(reserve), Encoded)

    with capture_logs() as lines:
        asyncio.run(scenario())
    [line] = [line for line in lines if line["event"] == "image ended its encoder processes"]
    assert len(line["sha256"]) == 64


def test_image_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is killed, and the item in reserve is embedded elsewhere."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS[:4]]
            await until(lambda: encoder._processes[0]._at_work() in items)
            pid = pids(encoder)[0]
            os.kill(pid, signal.SIGSTOP)
            slow = encoder._processes[0]._at_work()
            results = {item: await harness.result(item) for item in items}
            refused = results.pop(slow)
            assert isinstance(refused, Refused)
            assert refused.reason == "IMAGE_TOO_SLOW"
            assert all(isinstance(result, Encoded) for result in results.values())
            await until(lambda: len(pids(encoder)) == CORES)
            assert pid not in pids(encoder)

    monkeypatch.setattr(process_pool, "IMAGE_SECONDS", 0.3)
    monkeypatch.setattr(process_pool, "CHECK_SECONDS", 0.01)
    with capture_logs() as lines:
        asyncio.run(scenario())
    assert "image takes too long" in [line["event"] for line in lines]


def test_item_on_its_way_is_not_overdue() -> None:
    """The time of an item starts when it is seen first, even if no item was seen before."""
    process = make_processes(MOST_GROWTH)._processes[0]
    for number in (1, 2):
        process.items = {number: Item(id=number, backbone="", content=b"")}
        assert not process.overdue(0.0)
    assert process.overdue(0.0)
    assert process.give_up() is None


def test_items_do_not_wait_behind_a_slow_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve of a process that is long at one image goes to an idle process."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS[:4]]
            await until(lambda: encoder._processes[0]._at_work() in items)
            pid = encoder._processes[0].pid
            os.kill(pid, signal.SIGSTOP)
            slow = encoder._processes[0]._at_work()
            for item in items:
                if item != slow:
                    assert isinstance(await harness.result(item), Encoded)
            assert slow not in harness.results
            os.kill(pid, signal.SIGCONT)
            assert isinstance(await harness.result(slow), Encoded)
            await harness.encode(PHOTOS[0])
            assert pids(encoder)[0] == pid

    monkeypatch.setattr(process_pool, "CHECK_SECONDS", 0.02)
    asyncio.run(scenario())


def test_item_taken_back_is_not_lost_to_its_old_copy() -> None:
    """The process that it was taken from drops its copy, whichever process encodes it then."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            encoder.credits(100)  # many requests wait
            process = encoder._processes[0]
            items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS]
            await until(lambda: process._at_work() in items)
            os.kill(process.pid, signal.SIGSTOP)
            assert len(process.items) > 2
            encoder._take_back(process)
            os.kill(process.pid, signal.SIGCONT)
            results = [await harness.result(item) for item in items]
            assert all(isinstance(result, Encoded) for result in results)
            more = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS]
            results = [await harness.result(item) for item in more]
            assert all(isinstance(result, Encoded) for result in results)

    asyncio.run(scenario())


def test_cancelled_image_is_not_encoded_again() -> None:
    """After the death of its process an image whose caller has left is dropped."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            item = harness.submit(PHOTOS[0], digest=BUSY_INFO.digest)
            process = encoder._processes[0]
            await until(lambda: process._at_work() == item)
            os.kill(process.pid, signal.SIGSTOP)
            encoder.cancel(item)
            os.kill(process.pid, signal.SIGKILL)
            assert isinstance(await harness.result(item), Failed)
            assert not encoder._waiting
            assert not encoder._pending
            await until(lambda: len(pids(encoder)) == CORES)

    with capture_logs() as lines:
        asyncio.run(scenario())
    assert "image cannot be embedded" not in [line["event"] for line in lines]


def test_processes_end_with_their_server(tmp_path: Path) -> None:
    """Even a process that hangs is killed when the server is."""
    code = """
import asyncio, os, signal, sys
import test_encoders
async def scenario():
    async with test_encoders.process_encoder() as (_, encoder):
        found = test_encoders.pids(encoder)
        for each in found:
            os.kill(each, signal.SIGSTOP)
        print(*found, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    asyncio.run(scenario())
"""
    script = tmp_path / "server.py"
    script.write_text(code)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, check=False
    )
    found = [int(pid) for pid in done.stdout.splitlines()[-1].split()]
    assert len(found) == CORES
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return True if a process exists and is no zombie."""
    with suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_process_that_stands_still_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is blamed if none was in progress."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            for pid in pids(encoder):
                os.kill(pid, signal.SIGSTOP)
            items = [harness.submit(photo) for photo in PHOTOS[:4]]
            for item in items:
                assert isinstance(await harness.result(item), Encoded)

    monkeypatch.setattr(process_pool, "IMAGE_SECONDS", 0.3)
    monkeypatch.setattr(process_pool, "CHECK_SECONDS", 0.01)
    with capture_logs():
        asyncio.run(scenario())


def test_process_killed_while_it_loads_is_replaced() -> None:
    """The load ends, if only with the error of a file system; later ones succeed."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            info = replace(INFO, digest="2" * 64)

            def read() -> bytes:
                for pid in pids(encoder):
                    os.kill(pid, signal.SIGKILL)
                return MODEL

            with suppress(ConnectionError):  # a new process may be quicker
                await encoder.load(info, read)
            await until(lambda: len(pids(encoder)) == CORES)
            await encoder.load(info, lambda: MODEL)
            assert isinstance(await harness.encode(PHOTOS[0], digest=info.digest), Encoded)

    with capture_logs():
        asyncio.run(scenario())


def test_process_killed_while_it_is_prepared_is_replaced() -> None:
    """A process that dies again while it loads its backbones is started again."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            for _ in range(3):
                for process in encoder._processes:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                await until(lambda: any(map(is_prepared, encoder._processes)))
            await until(lambda: len(pids(encoder)) == CORES)
            result = await harness.encode(PHOTOS[0])
            assert isinstance(result, Encoded), result

    with capture_logs():
        asyncio.run(scenario())


def test_finished_images_are_not_blamed() -> None:
    """Results are held back while others wait; only the image in progress counts a death."""

    async def scenario() -> None:
        async with process_encoder() as (harness, encoder):
            encoder.credits(100)  # many requests wait
            items = [harness.submit(photo, digest=BUSY_INFO.digest) for photo in PHOTOS]
            deadly = items[4]
            while deadly not in harness.results:
                for process in encoder._processes:
                    if process._at_work() == deadly:
                        os.kill(process.pid, signal.SIGKILL)
                        await until(partial(is_free_of, process, deadly))
                await asyncio.sleep(0.001)
            results = {item: await harness.result(item) for item in items}
            assert getattr(results.pop(deadly), "reason", "") == "ENCODER_DIED"
            assert all(isinstance(result, Encoded) for result in results.values())

    with capture_logs():
        asyncio.run(scenario())


def test_process_that_keeps_memory_is_replaced() -> None:
    """It answers its image, then another process takes its place; no item is lost."""

    async def scenario() -> None:
        async with process_encoder(-(2**40)) as (harness, encoder):
            before = pids(encoder)
            items = [harness.submit(photo) for photo in PHOTOS]
            for item in items:
                assert isinstance(await harness.result(item), Encoded)
            await until(lambda: pids(encoder) and not set(before) & set(pids(encoder)))
            assert isinstance(await harness.encode(PHOTOS[0]), Encoded)

    with capture_logs():
        asyncio.run(scenario())


def test_load_of_a_large_backbone_replaces_no_process() -> None:
    """The memory of a backbone, and of its loading, is not that of an image."""
    large = onnx.load_from_string(MODEL)
    weights = np.zeros(10_000_000, dtype=np.float32)
    large.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    large.graph.node.append(helper.make_node("ReduceSum", ["weights"], ["sum"], keepdims=0))
    large.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    model = large.SerializeToString()
    info = tiny.backbone_info(model)

    async def scenario() -> None:
        async with process_encoder(len(model) // 2) as (harness, encoder):
            before = pids(encoder)
            load = asyncio.create_task(encoder.load(info, lambda: model))
            while not load.done():
                assert isinstance(await harness.encode(PHOTOS[0]), Encoded)
            await load
            for photo in PHOTOS:
                assert isinstance(await harness.encode(photo, digest=info.digest), Encoded)
            assert pids(encoder) == before

    asyncio.run(scenario())


def test_processes_import_neither_grpc_nor_the_database() -> None:
    """An encoder process is small and starts fast."""
    code = """
import sys
from topwork.serving.encoders import process_main
heavy = {"grpc", "dbos", "sqlalchemy", "torch", "click"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
