"""Cache of embeddings in one SQLite file, shared by all fits of a user."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import PIL

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.audio import AudioSpec
from topwork.inputs.spec import InputSpec
from topwork.inputs.text import TextSpec
from topwork.inputs.thumbnail import SIDE
from topwork.runtime.backend import software_versions
from topwork.storage.files import locked
from topwork.training.embed import Cache, EmbeddedRow
from topwork_trainer.backbones.stamp import spec_facts

FILE = "embeddings.sqlite"
LIMIT_BYTES = 4 * 2**30
"""Raising it keeps more rows: above it the oldest are deleted when the file is opened.

4 GiB hold 500,000 images of width 1280.
"""
BATCH = 256
"""Raising it makes transactions fewer and larger; a kill loses at most this number of rows."""
DECODING = 2
"""Raise it when decoding gives other pixels for the same bytes: it invalidates all rows."""


class EmbeddingCache:
    """Cache in a directory, open during its ``with`` block; safe for several processes.

    A cache failure is never an error: if the file cannot be opened or written, or is damaged, a
    warning is logged and the cache is off. A damaged file, or a file of another format, is renamed
    to ``*.damaged``.
    """

    def __init__(self, directory: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._file = directory / FILE
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._batch: list[tuple[bytes, bytes, bytes]] = []

    def __enter__(self) -> Self:
        with self._lock:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._open()
            except (sqlite3.Error, OSError) as error:
                self._disable(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._write()
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def for_backbone(self, backbone: BackboneInfo, preview_pixels: int = SIDE) -> Cache:
        """Return the rows of one backbone, preprocess spec, size of thumbnails and software.

        Other versions may decode and compute slightly differently.
        """
        depends = {
            "digest": backbone.digest,
            "preprocess": spec_facts(backbone.preprocess),
            "decoding": DECODING,
            "versions": {**software_versions(), **_decoder(backbone.preprocess)},
        }
        if preview_pixels != SIDE:  # rows of SIDE are those of earlier releases, too
            depends["preview_pixels"] = preview_pixels
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).digest()
        return _BackboneCache(self, key, backbone.width)

    def get(self, backbone: bytes, content: bytes) -> bytes | None:
        """Return the row that ``put`` stored under these two keys."""
        with self._lock:
            if self._connection is None:
                return None
            try:
                row = self._connection.execute(_GET, (backbone, content)).fetchone()
            except sqlite3.Error as error:
                self._disable(error)
                return None
        return row[0] if row else None

    def put(self, backbone: bytes, content: bytes, row: bytes) -> None:
        """Store ``row`` under these two keys; ``get`` finds it after its batch is written."""
        with self._lock:
            if self._connection is not None:
                self._batch.append((backbone, content, row))
                if len(self._batch) >= BATCH:
                    self._write()

    def _open(self) -> None:
        with locked(self._file.with_suffix(".lock")):
            try:
                self._connection = _connect(self._file)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                _rename_damaged(self._file, error)
                self._connection = _connect(self._file)
        _trim(self._connection, self._limit_bytes)

    def _write(self) -> None:
        batch, self._batch = self._batch, []
        if self._connection is not None and batch:
            try:
                with self._connection:
                    self._connection.executemany(_PUT, batch)
            except sqlite3.Error as error:
                self._disable(error)

    def _disable(self, error: sqlite3.Error | OSError) -> None:
        _LOG.warning("continuing without the cache %s: %s", self._file, error)
        connection, self._connection = self._connection, None
        self._batch.clear()
        if connection is not None:
            connection.close()
            if _is_damage(error):
                try:
                    with locked(self._file.with_suffix(".lock")):
                        _rename_damaged(self._file, error)
                except OSError as failed:
                    _LOG.warning("the damaged cache cannot be renamed: %s", failed)


@dataclass(frozen=True, slots=True)
class _BackboneCache:
    """Implements Cache. Bytes of a row: sha256, image digest, fingerprint, embedding, thumbnail."""

    cache: EmbeddingCache
    backbone: bytes
    width: int

    def get(self, content: bytes) -> EmbeddedRow | None:
        stored = self.cache.get(self.backbone, content)
        # SQLite does not detect flipped bits.
        if not isinstance(stored, bytes) or hashlib.sha256(stored[32:]).digest() != stored[:32]:
            return None
        thumbnail = 96 + 4 * self.width
        return EmbeddedRow(
            digest=stored[32:64],
            fingerprint=np.frombuffer(stored[64:96], dtype=np.uint8),
            embedding=np.frombuffer(stored[96:thumbnail], dtype="<f4"),
            thumbnail=stored[thumbnail:],
        )

    def put(self, content: bytes, row: EmbeddedRow) -> None:
        assert row.embedding.shape == (self.width,), "the width is not that of backbone.json"
        fingerprint, embedding = row.fingerprint.tobytes(), row.embedding.astype("<f4").tobytes()
        payload = row.digest + fingerprint + embedding + row.thumbnail
        self.cache.put(self.backbone, content, hashlib.sha256(payload).digest() + payload)


_LOG = logging.getLogger(__name__)
_FORMAT = 1
_CREATE = f"""
CREATE TABLE rows (
    id INTEGER PRIMARY KEY,
    backbone BLOB NOT NULL,
    content BLOB NOT NULL,
    row BLOB NOT NULL,
    UNIQUE (backbone, content)
);
PRAGMA application_id = 0x746F7077;
PRAGMA user_version = {_FORMAT};
"""
_GET = "SELECT row FROM rows WHERE backbone = ? AND content = ?"
_PUT = "INSERT OR REPLACE INTO rows (backbone, content, row) VALUES (?, ?, ?)"
_OLDEST = """
DELETE FROM rows WHERE id < (
    SELECT id FROM rows ORDER BY id LIMIT 1 OFFSET (SELECT CAST(count(*) * ? AS INTEGER) FROM rows)
)
"""


def _connect(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=10, check_same_thread=False)
    try:
        if _number(connection, "SELECT count(*) FROM sqlite_schema") == 0:
            connection.executescript(_CREATE)
        pragmas = ("application_id", "user_version")
        if [_number(connection, f"PRAGMA {name}") for name in pragmas] != [0x746F7077, _FORMAT]:
            raise _WrongFormatError(f"it is not a cache of format {_FORMAT}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _trim(connection: sqlite3.Connection, limit_bytes: int) -> None:
    pages, free, size = (
        _number(connection, f"PRAGMA {name}")
        for name in ("page_count", "freelist_count", "page_size")
    )
    used = (pages - free) * size
    if used > limit_bytes:  # down to three quarters, so that it does not happen on every start
        with connection:
            connection.execute(_OLDEST, (1 - 0.75 * limit_bytes / used,))


def _number(connection: sqlite3.Connection, query: str) -> int:
    with closing(connection.execute(query)) as cursor:
        return int(cursor.fetchone()[0])


def _decoder(spec: InputSpec) -> dict[str, str]:
    """Return names and versions of the libraries that prepare inputs."""
    if isinstance(spec, TextSpec):
        return {"tokenizers": metadata.version("tokenizers")}
    if isinstance(spec, AudioSpec):
        return {name: metadata.version(name) for name in ("soundfile", "soxr")}
    return {"pillow": PIL.__version__}


class _WrongFormatError(sqlite3.DatabaseError):
    pass


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # primary result code
    return isinstance(error, _WrongFormatError) or code in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }


def _rename_damaged(file: Path, error: Exception) -> None:
    damaged = file.with_name(f"{file.name}.damaged")
    _LOG.warning("the cache %s is damaged (%s); renamed to %s", file, error, damaged.name)
    file.replace(damaged)
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
