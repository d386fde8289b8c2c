"""Faults between a repository and its object store: nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from support import faulty_proxy
from support.faulty_proxy import CUT_AFTER, CUT_BEFORE, LOST_503, STALE, Fault, Proxy, Request
from support.object_stores import S3Server

from topwork.bundle.storage import objects
from topwork.bundle.storage.buckets import open_bucket
from topwork.bundle.storage.storage import ABSENT, Storage
from topwork.errors import Stale

KEY = "models/colours/serving.json"
DOCUMENTS = ("serving.json", "draft.json")
LISTINGS: dict[str, Callable[[Storage], object]] = {
    "files": lambda storage: storage.files("models/colours"),
    "directories": lambda storage: storage.directories("models"),
    "exists": lambda storage: storage.exists("models/colours"),
    "entry": lambda storage: storage.entry("models/colours"),
    "refreshed": lambda storage: storage.refreshed("images"),
    "sizes": lambda storage: storage.sizes([KEY]),
    "stamps": lambda storage: storage.stamps(DOCUMENTS, (), only="colours"),
}
FAULTS = (409, 412, 503, CUT_BEFORE, CUT_AFTER, LOST_503, 0.05)


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[Proxy]:
    """Yield a proxy before SeaweedFS, without faults yet."""
    with faulty_proxy.running(seaweedfs.port) as proxy:
        yield proxy


@pytest.fixture
def storages(proxy: Proxy, seaweedfs: S3Server, tmp_path: Path) -> list[Storage]:
    """Return a new repository with a model, as two hosts open it behind the proxy."""
    url = seaweedfs.new_url()
    with mock.patch.dict("os.environ", seaweedfs.environment(port=proxy.port)):
        opened = [
            open_bucket(url, cache_directory=tmp_path / str(number), cache_bytes=10**8)
            for number in range(2)
        ]
    opened[0].create("models/colours", {"draft.json": b"draft"})
    opened[0].write(KEY, b"[]")
    return opened


@pytest.mark.parametrize("fault", [503, CUT_BEFORE, CUT_AFTER, LOST_503, 0.5])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_request_succeeds_despite_one_fault(
    storages: list[Storage], proxy: Proxy, method: str, fault: Fault
) -> None:
    """A conditional write and a read succeed, once, if one of their requests fails."""
    tag = storages[0].read_tagged(KEY)[1]
    proxy.once(method, fault)
    storages[0].write(KEY, b"[1]", expected=tag)
    assert storages[1].read(KEY) == b"[1]"
    assert proxy.injected == 1
    with pytest.raises(Stale):
        storages[1].write(KEY, b"[2]", expected=tag)


@pytest.mark.parametrize("fault", [503, CUT_BEFORE, CUT_AFTER, LOST_503, 409])
def test_create_succeeds_despite_one_fault(
    storages: list[Storage], proxy: Proxy, fault: Fault
) -> None:
    """A directory is created, once, if the answer to its commit is lost."""
    proxy.once("PUT", fault, matching="manifest.json")
    storages[0].create("models/colours/1", {"head.onnx": b"1", "manifest.json": b"mine"})
    assert proxy.injected == 1
    with pytest.raises(FileExistsError):
        storages[1].create("models/colours/1", {"head.onnx": b"1", "manifest.json": b"other"})
    assert storages[1].read("models/colours/1/manifest.json") == b"mine"


def test_conditions_that_fail_are_stale(storages: list[Storage], proxy: Proxy) -> None:
    """An answer that the condition failed is Stale, and changes nothing."""
    tag = storages[0].read_tagged(KEY)[1]
    proxy.once("PUT", 412)
    with pytest.raises(Stale):
        storages[0].write(KEY, b"[1]", expected=tag)
    assert storages[1].read(KEY) == b"[]"


def test_store_without_answer_is_an_error_within_seconds(
    storages: list[Storage], proxy: Proxy
) -> None:
    """Reads, writes and listings of a store that hangs raise OSError, soon."""
    proxy.rule = lambda _request: 30.0
    calls: list[Callable[[], object]] = [
        lambda: storages[0].read(KEY),
        lambda: storages[0].write(KEY, b"[1]"),
        lambda: storages[0].stamps(DOCUMENTS, ()),
    ]

    def seconds(number: int) -> float:
        began = time.monotonic()
        with pytest.raises(OSError, match="no answer in time"):
            calls[number]()
        return time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(seconds, range(3))) < 15


@pytest.mark.parametrize("fault", [503, CUT_BEFORE, CUT_AFTER])
@pytest.mark.parametrize("method", LISTINGS)
def test_listing_of_a_store_that_fails_is_not_empty(
    proxy: Proxy,
    seaweedfs: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fault: Fault,
) -> None:
    """A listing that cannot be read is an error: gc would delete what an empty one lacks."""
    monkeypatch.setattr(objects, "ATTEMPT_SECONDS", -0.5)  # a second attempt begins within 0.5 s
    monkeypatch.setattr(objects, "RETRY", {**objects.RETRY, "max_retries": 1})
    with mock.patch.dict("os.environ", seaweedfs.environment(port=proxy.port)):
        storage = open_bucket(seaweedfs.new_url(), cache_directory=tmp_path, cache_bytes=10**8)
    storage.create("models/colours", {"draft.json": b"draft"})
    storage.write(KEY, b"[]")
    storage.put_blob("images/" + "0" * 64, b"image")
    assert LISTINGS[method](storage)
    proxy.rule = lambda _request: fault
    with pytest.raises(OSError, match="bucket"):
        LISTINGS[method](storage)


def test_store_that_is_down_is_an_error_within_seconds(
    storages: list[Storage], proxy: Proxy
) -> None:
    """A store that answers 503 or cuts all connections is an OSError that names the bucket."""
    for fault, text in ((503, "SlowDown"), (CUT_BEFORE, "cannot be reached")):
        proxy.rule = lambda _request, fault=fault: fault  # type: ignore[misc]
        began = time.monotonic()
        with pytest.raises(OSError, match=text) as raised:
            storages[0].read(KEY)
        assert str(storages[0]) in str(raised.value)
        assert "Signature" not in str(raised.value)
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("seed", range(3))
def test_no_acknowledged_write_is_lost(storages: list[Storage], proxy: Proxy, seed: int) -> None:
    """With a fault in every fourth request, each acknowledged append is in the document."""
    choices, mutex = random.Random(seed), threading.Lock()

    def rule(request: Request) -> Fault:
        with mutex:
            if choices.random() >= 0.25:
                return None
            fault = choices.choice(FAULTS)
        return 503 if request.method != "PUT" and fault in {409, 412} else fault

    proxy.rule = rule
    acknowledged: list[str] = []

    def append(writer: int) -> None:
        for number in range(20):
            entry = f"{writer}-{number}"
            with contextlib.suppress(Stale, OSError):
                content, tag = storages[writer].read_tagged(KEY)
                changed = json.dumps([*json.loads(content), entry]).encode()
                storages[writer].write(KEY, changed, expected=tag)
                acknowledged.append(entry)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(append, range(2)))
    proxy.rule = lambda _request: None
    stored = json.loads(storages[0].read(KEY))
    assert proxy.injected > 10
    assert len(acknowledged) > 5
    assert set(acknowledged) <= set(stored)
    assert len(set(stored)) == len(stored)


@pytest.mark.parametrize("seed", range(3))
def test_racing_creators_with_faults_make_one_whole_directory(
    storages: list[Storage], proxy: Proxy, seed: int
) -> None:
    """Whatever fails, at most one writer is told that it made a directory, which is its own."""
    choices, mutex = random.Random(seed), threading.Lock()

    def rule(request: Request) -> Fault:
        with mutex:
            faulty = request.method == "PUT" and choices.random() < 0.3
            return choices.choice((503, CUT_BEFORE, CUT_AFTER, LOST_503)) if faulty else None

    proxy.rule = rule

    def create(writer: int, number: int) -> bool:
        files = {"head.onnx": b"%d" % writer, "manifest.json": b"manifest of %d" % writer}
        with contextlib.suppress(FileExistsError, OSError):
            storages[writer].create(f"models/colours/{number}", files)
            return True
        return False

    for number in range(1, 9):
        with ThreadPoolExecutor(2) as pool:
            won = [*pool.map(create, range(2), [number] * 2)]
        assert won.count(True) <= 1
        if True in won:
            owner = b"%d" % won.index(True)
            assert storages[0].read(f"models/colours/{number}/head.onnx") == owner
            assert storages[0].read(f"models/colours/{number}/manifest.json").endswith(owner)
    assert proxy.injected > 5


def test_stale_listings_lose_nothing(storages: list[Storage], proxy: Proxy) -> None:
    """Listings from before are not believed by writers, and readers follow when they are newer."""
    reader, writer = storages
    first = reader.stamps(DOCUMENTS, ())
    writer.directories("models/colours")
    proxy.rule = lambda request: STALE if "list-type=2" in request.target else None
    writer.create("models/colours/1", {"head.onnx": b"1", "manifest.json": b"first"})
    with pytest.raises(FileExistsError):
        writer.create("models/colours/1", {"head.onnx": b"1", "manifest.json": b"other"})
    tag = writer.read_tagged(KEY)[1]
    writer.write(KEY, b"[1]", expected=tag)
    with pytest.raises(Stale):
        writer.write(KEY, b"[2]", expected=ABSENT)
    assert reader.read(KEY) == b"[1]"
    assert reader.stamps(DOCUMENTS, ()) == first
    proxy.rule = lambda _request: None
    writer.write(KEY, b"[3]")
    assert reader.stamps(DOCUMENTS, ()) != first
