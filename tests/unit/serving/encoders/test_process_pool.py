"""Encoder processes that end, hang, or keep memory: every item gets its result."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from structlog.testing import capture_logs
from support import tiny
from support.encoders import (
    CORES,
    INFO,
    MODEL,
    PHOTOS,
    Harness,
    embedding,
    expected,
    make_pool,
    pids,
    started,
    until,
)
from support.pictures import picture

from topwork.serving.encoders import process_pool
from topwork.serving.encoders.encoder import Encoded, Failed, Item, Refused, Result
from topwork.serving.encoders.gpu import GpuEncoder
from topwork.serving.encoders.item_process import ItemProcess
from topwork.serving.encoders.process_pool import MOST_GROWTH
from topwork.serving.encoders.processes import ProcessEncoder

Pool = ProcessEncoder | GpuEncoder
KINDS = ["processes", "gpu"]
MODULES = {"processes": "process_main", "gpu": "decoder_main"}
"""Programs of the processes."""
HEAVY = {"processes": "set()", "gpu": '{"onnx", "onnxruntime"}'}
KILLS = 8
pytestmark = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def running(
    kind: str, *, most_growth: int = MOST_GROWTH
) -> AsyncIterator[tuple[Harness, Pool]]:
    """Yield a started encoder with processes."""
    encoder = make_pool(kind, most_growth=most_growth)
    async with started(encoder) as harness:
        yield harness, encoder


def first_process(encoder: Pool) -> ItemProcess[Any]:
    """Return the first process of an encoder."""
    process: ItemProcess[Any] = encoder._processes[0]
    return process


def is_free_of(process: ItemProcess[Any], item: int) -> bool:
    """Return True if a process does not have an item."""
    return item not in process.items


def is_starting(process: ItemProcess[Any]) -> bool:
    """Return True while a process is started or loads its backbones."""
    return process._transport is not None and not process.works()


def test_items_of_a_killed_process_go_to_another(kind: str) -> None:
    """After SIGKILL of a process all items are embedded, and a new process works soon."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            first = pids(encoder)
            items = harness.submit_slow(4)
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


def test_items_wait_while_no_process_lives(kind: str) -> None:
    """All processes are killed at once; the items are embedded after their restart."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
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


def test_image_at_work_in_two_deaths_is_refused(kind: str) -> None:
    """It is logged by its digest; the items beside it are embedded."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            deadly, beside = harness.submit_slow(2)
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


def test_image_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its process is killed, and the item in reserve is embedded elsewhere."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            items = harness.submit_slow(4)
            await until(lambda: first_process(encoder)._at_work() in items)
            pid = pids(encoder)[0]
            os.kill(pid, signal.SIGSTOP)
            slow = first_process(encoder)._at_work()
            results = {item: await harness.result(item) for item in items}
            refused = results.pop(slow)
            assert isinstance(refused, Refused)
            assert refused.reason == "IMAGE_TOO_SLOW"
            assert all(isinstance(result, Encoded) for result in results.values())
            await until(lambda: len(pids(encoder)) == CORES)
            assert pid not in pids(encoder)

    monkeypatch.setattr(process_pool, "IMAGE_SECONDS", 2.0)
    monkeypatch.setattr(process_pool, "CHECK_SECONDS", 0.01)
    with capture_logs() as lines:
        asyncio.run(scenario())
    assert "image takes too long" in [line["event"] for line in lines]


def test_item_on_its_way_is_not_overdue(kind: str) -> None:
    """The time of an item starts when it is seen first, even if no item was seen before."""
    process = first_process(make_pool(kind))
    for number in (1, 2):
        process.items = {number: Item(id=number, backbone="", content=b"")}
        assert not process.overdue(0.0)
    assert process.overdue(0.0)
    assert process.give_up() is None


def test_items_do_not_wait_behind_a_slow_image(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The reserve of a process that is long at one image goes to an idle process."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            items = harness.submit_slow(4)
            await until(lambda: first_process(encoder)._at_work() in items)
            pid = first_process(encoder).pid
            os.kill(pid, signal.SIGSTOP)
            slow = first_process(encoder)._at_work()
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


def test_item_taken_back_is_not_lost_to_its_old_copy(kind: str) -> None:
    """The process that it was taken from drops its copy, whichever process encodes it then."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            encoder.credits(100)  # many requests wait
            process = first_process(encoder)
            items = harness.submit_slow(8)
            await until(lambda: process._at_work() in items)
            os.kill(process.pid, signal.SIGSTOP)
            assert len(process.items) > 2
            encoder._take_back(encoder._processes[0])  # type: ignore[arg-type]  # its own
            os.kill(process.pid, signal.SIGCONT)
            results = [await harness.result(item) for item in items]
            assert all(isinstance(result, Encoded) for result in results)
            more = harness.submit_slow(8)
            results = [await harness.result(item) for item in more]
            assert all(isinstance(result, Encoded) for result in results)

    asyncio.run(scenario())


def test_cancelled_image_is_not_encoded_again(kind: str) -> None:
    """After the death of its process an image whose caller has left is dropped."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            (item,) = harness.submit_slow(1)
            process = first_process(encoder)
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
    assert "input cannot be embedded" not in [line["event"] for line in lines]


def test_processes_end_with_their_server(tmp_path: Path, kind: str) -> None:
    """Even a process that hangs is killed when the server is."""
    code = """
import asyncio, os, signal, sys
from support import encoders
async def scenario():
    encoder = encoders.make_pool(sys.argv[1])
    async with encoders.started(encoder):
        found = encoders.pids(encoder)
        for each in found:
            os.kill(each, signal.SIGSTOP)
        print(*found, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    asyncio.run(scenario())
"""
    script = tmp_path / "server.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), kind]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
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


def test_process_that_stands_still_is_replaced(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """No image is blamed if none was in progress."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            for pid in pids(encoder):
                os.kill(pid, signal.SIGSTOP)
            items = [harness.submit(photo) for photo in PHOTOS[:4]]
            for item in items:
                assert isinstance(await harness.result(item), Encoded)

    monkeypatch.setattr(process_pool, "IMAGE_SECONDS", 1.0)
    monkeypatch.setattr(process_pool, "CHECK_SECONDS", 0.01)
    with capture_logs():
        asyncio.run(scenario())


def test_process_killed_while_it_loads_is_replaced(kind: str) -> None:
    """The load ends, if only with the error of a file system; later ones succeed."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
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


def test_process_killed_while_it_is_prepared_is_replaced(kind: str) -> None:
    """A process that dies again before it takes items is started again."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            for _ in range(3):
                for process in encoder._processes:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
                await until(lambda: any(map(is_starting, encoder._processes)))
            await until(lambda: len(pids(encoder)) == CORES)
            result = await harness.encode(PHOTOS[0])
            assert isinstance(result, Encoded), result

    with capture_logs():
        asyncio.run(scenario())


def test_finished_images_are_not_blamed(kind: str) -> None:
    """Results are held back while others wait; only the image in progress counts a death."""

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            encoder.credits(100)  # many requests wait
            items = harness.submit_slow(8)
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


def test_process_that_keeps_memory_is_replaced(kind: str) -> None:
    """It answers its image, then another process takes its place; no item is lost."""

    async def scenario() -> None:
        async with running(kind, most_growth=-(2**40)) as (harness, encoder):
            before = pids(encoder)
            items = [harness.submit(photo) for photo in PHOTOS]
            for item in items:
                assert isinstance(await harness.result(item), Encoded)
            await until(lambda: pids(encoder) and not set(before) & set(pids(encoder)))
            assert isinstance(await harness.encode(PHOTOS[0]), Encoded)

    with capture_logs():
        asyncio.run(scenario())


def test_load_of_a_large_backbone_replaces_no_process(kind: str) -> None:
    """The memory of a backbone, and of its loading, is not that of an image."""
    large = onnx.load_from_string(MODEL)
    weights = np.zeros(10_000_000, dtype=np.float32)
    large.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
    large.graph.node.append(helper.make_node("ReduceSum", ["weights"], ["sum"], keepdims=0))
    large.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    model = large.SerializeToString()
    info = tiny.backbone_info(model)

    async def scenario() -> None:
        async with running(kind, most_growth=len(model) // 2) as (harness, encoder):
            before = pids(encoder)
            load = asyncio.create_task(encoder.load(info, lambda: model))
            while not load.done():
                assert isinstance(await harness.encode(PHOTOS[0]), Encoded)
            await load
            for photo in PHOTOS:
                assert isinstance(await harness.encode(photo, digest=info.digest), Encoded)
            assert pids(encoder) == before

    asyncio.run(scenario())


def test_random_kills_mix_up_no_items(kind: str) -> None:
    """Each of 500 different photos gets its own embedding, whichever processes are killed."""
    chance = random.Random(5)
    photos = [picture("blue", number) for number in range(500)]
    results: dict[bytes, Result] = {}

    async def scenario() -> None:
        async with running(kind) as (harness, encoder):
            items: dict[int, bytes] = {}
            kills = set(chance.sample(range(len(photos)), KILLS))
            for number, photo in enumerate(photos):
                await until(lambda: encoder.credits(100) > 0)
                items[harness.submit(photo, present=100)] = photo
                if number in kills and (alive := pids(encoder)):
                    os.kill(chance.choice(alive), signal.SIGKILL)
            for item, photo in items.items():
                results[photo] = await harness.result(item)

    with capture_logs():
        asyncio.run(scenario())
    died = [result for result in results.values() if not isinstance(result, Encoded)]
    assert len(died) <= KILLS // 2  # an image in progress in two deaths is refused
    assert {getattr(result, "reason", "") for result in died} <= {"ENCODER_DIED"}
    assert len(results) == len(photos)
    for photo, result in results.items():
        if isinstance(result, Encoded):
            np.testing.assert_allclose(embedding(result), expected(photo), rtol=1e-6)


def test_processes_import_only_what_they_need(kind: str) -> None:
    """An encoder process is small and starts fast; beside a GPU it has no ONNX Runtime."""
    code = f"""
import sys
from topwork.serving.encoders import {MODULES[kind]}
heavy = {{"grpc", "dbos", "sqlalchemy", "torch", "click"}} | {HEAVY[kind]}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
