"""The cache of an object store: bounded, verified, and never in the way of a read."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from topwork.storage.bucket import cache as caches
from topwork.storage.bucket.cache import Cache
from topwork.storage.storage import Tag


def digest(content: bytes) -> str:
    """Return the sha256."""
    return hashlib.sha256(content).hexdigest()


def age(path: Path, seconds: float) -> None:
    """Let an entry be used that long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def size(cache: Cache) -> int:
    """Return the bytes on the disk."""
    return sum(path.stat().st_size for path in cache.directory.rglob("*") if path.is_file())


def test_blob_is_read_as_it_was_stored(tmp_path: Path) -> None:
    """Content is returned to every process with this directory, and its file is private."""
    first, second = Cache(tmp_path, 10**6), Cache(tmp_path, 10**6)
    assert first.blob(digest(b"x")) is None
    path = first.put_blob(digest(b"x"), b"x")
    assert path is not None
    assert path.stat().st_mode & 0o077 == 0
    assert second.blob(digest(b"x")) == b"x"
    assert second.path(digest(b"x")) == path


def test_damaged_blob_is_forgotten(tmp_path: Path) -> None:
    """A file that was changed on the disk is not returned, and is deleted."""
    cache = Cache(tmp_path, 10**6)
    path = cache.put_blob(digest(b"x"), b"x")
    assert path is not None
    path.write_bytes(b"y")
    assert cache.blob(digest(b"x")) is None
    assert not path.exists()


def test_least_recently_used_entries_are_evicted(tmp_path: Path) -> None:
    """The cache stays below its limit; what was used lately remains."""
    cache = Cache(tmp_path, 16_000)
    contents = [bytes([number]) * 1000 for number in range(40)]
    used = digest(contents[0])
    for content in contents:
        path = cache.put_blob(digest(content), content)
        assert path is not None
        age(path, 100)
        assert cache.path(used) is not None
        assert size(cache) <= 16_000
    assert cache.blob(used) == contents[0]
    assert cache.blob(digest(contents[1])) is None


def test_content_larger_than_the_cache_is_not_stored(tmp_path: Path) -> None:
    """A blob that can never fit evicts nothing."""
    cache = Cache(tmp_path, 100)
    assert cache.put_blob(digest(b"x"), b"x") is not None
    assert cache.put_blob(digest(bytes(1000)), bytes(1000)) is None
    assert cache.blob(digest(b"x")) == b"x"


def test_full_disk_stores_nothing_and_raises_nothing(tmp_path: Path) -> None:
    """Where the disk takes no file, content can still be had as a temporary file."""
    (tmp_path / "blobs").write_text("no directory")
    cache = Cache(tmp_path, 10**6)
    assert cache.put_blob(digest(b"x"), b"x") is None
    cache.put_document("s3://b/x", Tag('"1"'), b"doc")
    assert cache.temporary(b"x").read_bytes() == b"x"


def test_temporary_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beside a full cache are deleted when others were asked for."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache = Cache(tmp_path / "cache", 0)
    paths = [cache.temporary(b"%d" % number) for number in range(20)]
    assert [path for path in paths if path.exists()] == paths[-16:]
    cache._delete_unstored(0)


def test_document_is_remembered_with_its_tag(tmp_path: Path) -> None:
    """Another process reads tag and content of a document, unless its file is damaged."""
    Cache(tmp_path, 10**6).put_document("s3://b/x", Tag('"1"'), b"a\nb")
    assert Cache(tmp_path, 10**6).document("s3://b/x") == ('"1"', b"a\nb")
    assert Cache(tmp_path, 10**6).document("s3://b/y") is None
    (path,) = (tmp_path / "documents").iterdir()
    path.write_bytes(path.read_bytes() + b"c")
    assert Cache(tmp_path, 10**6).document("s3://b/x") is None


def test_memory_of_documents_is_bounded(tmp_path: Path) -> None:
    """The documents in memory are few; the others are read from the disk."""
    cache = Cache(tmp_path, 10**6)
    with mock.patch.object(caches, "_MEMORY", 1000):
        for number in range(30):
            cache.put_document(f"s3://b/{number}", Tag("1"), bytes(100))
        assert cache._in_memory <= 1000
        assert cache.document("s3://b/0") == ("1", bytes(100))


def test_concurrent_fills_and_evictions_return_right_content(tmp_path: Path) -> None:
    """Processes that fill and evict at once get the content or nothing, never another."""
    contents = [bytes([number]) * 500 for number in range(64)]

    def use(writer: int) -> int:
        cache, hits = Cache(tmp_path, 8_000), 0
        for content in (contents[writer:] + contents[:writer]) * 3:
            found = cache.blob(digest(content))
            assert found in {None, content}
            hits += found is not None
            cache.put_blob(digest(content), content)
        return hits

    with mock.patch.object(caches, "GRACE", -1.0), ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]
