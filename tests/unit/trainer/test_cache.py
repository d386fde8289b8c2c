"""The cache gives back what was put in, and nothing that befalls it stops anybody."""

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
from topwork.runtime.backend import Session, open_session
from topwork.training.embed import EmbeddedRow, ImageSource, embed
from topwork_trainer import cache as module
from topwork_trainer.cache import BATCH, FILE, EmbeddingCache


@pytest.fixture(scope="module")
def info() -> BackboneInfo:
    """Return the tiny backbone."""
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


def same(one: EmbeddedRow, other: EmbeddedRow) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("digest", "fingerprint", "embedding", "thumbnail")
    )


def fill(directory: Path, info: BackboneInfo, indices: range) -> None:
    with EmbeddingCache(directory) as cache:
        for index in indices:
            cache.for_backbone(info).put(key(index), row(index))


def found(directory: Path, info: BackboneInfo, indices: range) -> int:
    with EmbeddingCache(directory) as cache:
        rows = [cache.for_backbone(info).get(key(index)) for index in indices]
    assert all(
        one is None or same(one, row(index)) for index, one in zip(indices, rows, strict=True)
    )
    return sum(one is not None for one in rows)


def test_what_was_put_is_there_next_time(tmp_path: Path, info: BackboneInfo) -> None:
    """Every row comes back bit for bit from a file that was closed; what was not put does not."""
    fill(tmp_path, info, range(BATCH + 10))
    assert found(tmp_path, info, range(BATCH + 20)) == BATCH + 10


def test_rows_belong_to_one_backbone_and_spec(
    tmp_path: Path, info: BackboneInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone, preprocess spec or version of the software finds nothing."""
    fill(tmp_path, info, range(3))
    others = (
        replace(info, digest=sha256(b"other").hexdigest()),
        replace(info, preprocess=replace(info.preprocess, resize=17)),
    )
    assert [found(tmp_path, other, range(3)) for other in others] == [0, 0]
    assert found(tmp_path, replace(info, name="renamed"), range(3)) == 3
    monkeypatch.setattr(module, "software_versions", lambda: {"topwork": "99"})
    assert found(tmp_path, info, range(3)) == 0


class Counted:
    """The tiny backbone, which counts what it is asked."""

    def __init__(self) -> None:
        self.session: Session = open_session(tiny.backbone_model(), output="embedding")
        self.images = 0

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embedding."""
        self.images += len(batch)
        return self.session.run(batch)


def test_embedding_again_runs_no_backbone(tmp_path: Path, info: BackboneInfo) -> None:
    """With all images in the cache the exemplars are the same bytes, and the backbone rests."""
    sources = [
        ImageSource(name=f"{label}-{index}", label=label, read=lambda content=content: content)  # type: ignore[misc] # mypy cannot infer a lambda's default
        for label in ("amber", "blue")
        for index, content in enumerate([*pictures(label, 20), b"no picture"])
    ]
    counted, found = Counted(), []
    for _ in range(2):
        with EmbeddingCache(tmp_path) as cache:
            made, skipped = embed(
                sources,
                counted,  # type: ignore[arg-type] # all that is used of a session
                tiny.SPEC,
                cores=2,
                cache=cache.for_backbone(info),
            )
        assert made is not None
        assert len(skipped) == 2
        found.append(tiny.shard_files(made))
    bare, _ = embed(sources, counted.session, tiny.SPEC, cores=2)
    assert bare is not None
    assert found == [tiny.shard_files(bare)] * 2
    assert counted.images == 40


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
    )  # all but the page that says what it is
    file.write_bytes(content)


@pytest.mark.parametrize(
    "spoil", [truncate, foreign_text, foreign_database, newer_format, scribble]
)
def test_unusable_file_is_set_aside(
    spoil: Callable[[Path], None],
    tmp_path: Path,
    info: BackboneInfo,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A damaged or foreign file is kept under another name with a warning; the next one works."""
    fill(tmp_path, info, range(50))
    spoil(tmp_path / FILE)
    spoilt = (tmp_path / FILE).read_bytes()
    assert found(tmp_path, info, range(50)) == 0
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == spoilt
    assert "set aside" in caplog.text
    fill(tmp_path, info, range(50))
    assert found(tmp_path, info, range(50)) == 50


def test_flipped_bit_is_not_served(tmp_path: Path, info: BackboneInfo) -> None:
    """A row that is not what was put is as good as none, and can be put again."""
    fill(tmp_path, info, range(2))
    wanted = row(0).embedding.tobytes()
    content = (tmp_path / FILE).read_bytes()
    at = content.index(wanted)
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    (tmp_path / FILE).write_bytes(flipped)
    assert found(tmp_path, info, range(2)) == 1
    fill(tmp_path, info, range(1))
    assert found(tmp_path, info, range(2)) == 2


def test_directory_that_cannot_be_made_stops_nobody(
    tmp_path: Path, info: BackboneInfo, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a place to write there is a warning and no cache."""
    (tmp_path / "file").write_text("")
    fill(tmp_path / "file" / "below", info, range(2 * BATCH))
    assert found(tmp_path / "file" / "below", info, range(3)) == 0
    assert "going on without the cache" in caplog.text


def test_full_disk_only_stops_caching(
    tmp_path: Path, info: BackboneInfo, caplog: pytest.LogCaptureFixture
) -> None:
    """When a batch cannot be written there is one warning, and what was there before stays."""
    fill(tmp_path, info, range(5))
    with EmbeddingCache(tmp_path) as cache:
        assert cache._connection is not None
        pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
        cache._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        part = cache.for_backbone(info)
        for index in range(5, 5 + 3 * BATCH):
            part.put(key(index), row(index))
        assert part.get(key(0)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "full" in caplog.text
    assert not list(tmp_path.glob("*.damaged"))
    assert found(tmp_path, info, range(20)) == 5


def test_oldest_rows_make_room(tmp_path: Path, info: BackboneInfo) -> None:
    """A file above the limit loses its oldest rows when it is opened, down to three quarters."""
    fill(tmp_path, info, range(400))
    size = (tmp_path / FILE).stat().st_size
    with EmbeddingCache(tmp_path, limit_bytes=size // 2):
        pass
    left = [index for index in range(400) if found(tmp_path, info, range(index, index + 1))]
    assert left == list(range(400 - len(left), 400))
    assert 100 < len(left) < 200


def _writer(directory: Path, info: BackboneInfo, indices: range) -> None:
    fill(directory, info, indices)


def test_two_processes_write_at_once(tmp_path: Path, info: BackboneInfo) -> None:
    """Rows of processes that open, write and close side by side are all there."""
    context = multiprocessing.get_context("spawn")
    ranges = [range(start, start + 600) for start in (0, 400)]
    writers = [context.Process(target=_writer, args=(tmp_path, info, one)) for one in ranges]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert found(tmp_path, info, range(1000)) == 1000


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


def test_kill_loses_a_batch_at_most(killed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a kill whole batches are there and the file is sound."""
    with EmbeddingCache(killed) as cache:
        rows = [cache.get(b"backbone", str(index).encode()) for index in range(BATCH * 3 // 2)]
    assert rows == [b"row"] * BATCH + [None] * (BATCH // 2)
    assert not caplog.records
