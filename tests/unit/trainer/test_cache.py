"""Cache of embeddings: rows come back unchanged, and failures of the cache stop no fit."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import tiny
from support.pictures import pictures

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image_source import ImageSource
from topwork.runtime.backend import Session, open_session
from topwork.training.embed import EmbeddedRow, embed
from topwork_trainer import cache as module
from topwork_trainer.cache import BATCH, FILE, EmbeddingCache


@pytest.fixture(scope="module")
def info() -> BackboneInfo:
    """Return the description of the tiny backbone."""
    return tiny.backbone_info(tiny.backbone_model())


def key(index: int) -> bytes:
    return sha256(str(index).encode()).digest()


def row(index: int) -> EmbeddedRow:
    rng = np.random.default_rng(index)
    return EmbeddedRow(
        digest=rng.bytes(32),
        fingerprint=rng.integers(0, 256, 32, dtype=np.uint8),
        embedding=rng.standard_normal(tiny.WIDTH, dtype=np.float32),
        thumbnail=rng.bytes(100 + index),
    )


def same(left: EmbeddedRow, right: EmbeddedRow) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("digest", "fingerprint", "embedding", "thumbnail")
    )


def fill(directory: Path, info: BackboneInfo, indices: range) -> None:
    with EmbeddingCache(directory) as cache:
        for index in indices:
            cache.for_backbone(info).put(key(index), row(index))


def count_hits(directory: Path, info: BackboneInfo, indices: range) -> int:
    with EmbeddingCache(directory) as cache:
        rows = [cache.for_backbone(info).get(key(index)) for index in indices]
    assert all(
        hit is None or same(hit, row(index)) for index, hit in zip(indices, rows, strict=True)
    )
    return sum(hit is not None for hit in rows)


def test_rows_survive_reopening(tmp_path: Path, info: BackboneInfo) -> None:
    """Each stored row comes back bit for bit after the file was closed; others are not found."""
    fill(tmp_path, info, range(BATCH + 10))
    assert count_hits(tmp_path, info, range(BATCH + 20)) == BATCH + 10


def test_rows_belong_to_one_backbone_and_spec(
    tmp_path: Path, info: BackboneInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone, preprocess spec or software version finds no rows."""
    fill(tmp_path, info, range(3))
    others = (
        replace(info, digest=sha256(b"other").hexdigest()),
        replace(info, preprocess=replace(info.image_spec, resize=17)),
    )
    assert [count_hits(tmp_path, other, range(3)) for other in others] == [0, 0]
    assert count_hits(tmp_path, replace(info, name="renamed"), range(3)) == 3
    monkeypatch.setattr(module, "software_versions", lambda: {"topwork": "99"})
    assert count_hits(tmp_path, info, range(3)) == 0


class CountingSession:
    """Session of the tiny backbone that counts images."""

    def __init__(self) -> None:
        self.session: Session = open_session(tiny.backbone_model(), output="embedding")
        self.images = 0

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings and count the images."""
        self.images += len(batch)
        return self.session.run(batch)


def test_embedding_again_runs_no_backbone(tmp_path: Path, info: BackboneInfo) -> None:
    """With all images in the cache the exemplars are the same and the backbone does not run."""
    sources = [
        ImageSource(name=f"{label}-{index}", label=label, read=lambda content=content: content)  # type: ignore[misc] # mypy cannot infer a lambda's default
        for label in ("amber", "blue")
        for index, content in enumerate([*pictures(label, 20), b"no picture"])
    ]
    session, shards = CountingSession(), []
    for _ in range(2):
        with EmbeddingCache(tmp_path) as cache:
            exemplars, skipped = embed(
                sources,
                session,
                tiny.SPEC,
                cores=2,
                cache=cache.for_backbone(info),
            )
        assert exemplars is not None
        assert len(skipped) == 2
        shards.append(tiny.shard_files(exemplars))
    uncached, _ = embed(sources, session.session, tiny.SPEC, cores=2)
    assert uncached is not None
    assert shards == [tiny.shard_files(uncached)] * 2
    assert session.images == 40


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def foreign_text(file: Path) -> None:
    file.write_text("not a database, but long enough to be read as one" * 100)


def foreign_database(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE rows (something TEXT)")
    connection.close()


def newer_format(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()


def scribble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096:] = np.random.default_rng(0).bytes(
        len(content) - 4096
    )  # keeps the first page, which has the file's format
    file.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [truncate, foreign_text, foreign_database, newer_format, scribble]
)
def test_unusable_file_is_renamed(
    spoil: Callable[[Path], None],
    tmp_path: Path,
    info: BackboneInfo,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A damaged or foreign file is renamed with a warning, and a new cache is created."""
    fill(tmp_path, info, range(50))
    spoil(tmp_path / FILE)
    spoilt = (tmp_path / FILE).read_bytes()
    assert count_hits(tmp_path, info, range(50)) == 0
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == spoilt
    assert "renamed to" in caplog.text
    fill(tmp_path, info, range(50))
    assert count_hits(tmp_path, info, range(50)) == 50


def test_row_with_flipped_bit_is_not_found(tmp_path: Path, info: BackboneInfo) -> None:
    """A row that fails its checksum counts as missing and can be stored again."""
    fill(tmp_path, info, range(2))
    wanted = row(0).embedding.tobytes()
    content = (tmp_path / FILE).read_bytes()
    at = content.index(wanted)
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    (tmp_path / FILE).write_bytes(flipped)
    assert count_hits(tmp_path, info, range(2)) == 1
    fill(tmp_path, info, range(1))
    assert count_hits(tmp_path, info, range(2)) == 2


def test_unwritable_directory_turns_the_cache_off(
    tmp_path: Path, info: BackboneInfo, caplog: pytest.LogCaptureFixture
) -> None:
    """If the directory cannot be created there is a warning and no cache."""
    (tmp_path / "file").write_text("")
    fill(tmp_path / "file" / "below", info, range(2 * BATCH))
    assert count_hits(tmp_path / "file" / "below", info, range(3)) == 0
    assert "continuing without the cache" in caplog.text


def test_full_disk_turns_the_cache_off(
    tmp_path: Path, info: BackboneInfo, caplog: pytest.LogCaptureFixture
) -> None:
    """When a batch cannot be written there is one warning, and earlier rows remain."""
    fill(tmp_path, info, range(5))
    with EmbeddingCache(tmp_path) as cache:
        assert cache._connection is not None
        pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
        cache._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        rows = cache.for_backbone(info)
        for index in range(5, 5 + 3 * BATCH):
            rows.put(key(index), row(index))
        assert rows.get(key(0)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "full" in caplog.text
    assert not list(tmp_path.glob("*.damaged"))
    assert count_hits(tmp_path, info, range(20)) == 5


def test_oldest_rows_are_deleted_above_the_limit(tmp_path: Path, info: BackboneInfo) -> None:
    """A file above the limit loses its oldest rows when opened, down to three quarters of it."""
    fill(tmp_path, info, range(400))
    size = (tmp_path / FILE).stat().st_size
    with EmbeddingCache(tmp_path, limit_bytes=size // 2):
        pass
    left = [index for index in range(400) if count_hits(tmp_path, info, range(index, index + 1))]
    assert left == list(range(400 - len(left), 400))
    assert 100 < len(left) < 200


def _writer(directory: Path, info: BackboneInfo, indices: range) -> None:
    fill(directory, info, indices)


def test_two_processes_write_at_once(tmp_path: Path, info: BackboneInfo) -> None:
    """Two processes that use the cache at the same time lose no rows."""
    context = multiprocessing.get_context("spawn")
    ranges = [range(start, start + 600) for start in (0, 400)]
    writers = [
        context.Process(target=_writer, args=(tmp_path, info, indices)) for indices in ranges
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert count_hits(tmp_path, info, range(1000)) == 1000


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return a cache whose writer was killed after 1.5 batches."""
    code = f"""
import os, signal
from pathlib import Path
from topwork_trainer.cache import BATCH, EmbeddingCache
cache = EmbeddingCache(Path({str(tmp_path)!r})).__enter__()
for index in range(BATCH * 3 // 2):
    cache.put(b"backbone", str(index).encode(), b"row")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    return tmp_path


def test_kill_loses_at_most_one_batch(killed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a kill all written batches are there and the file is intact."""
    with EmbeddingCache(killed) as cache:
        rows = [cache.get(b"backbone", str(index).encode()) for index in range(BATCH * 3 // 2)]
    assert rows == [b"row"] * BATCH + [None] * (BATCH // 2)
    assert not caplog.records
