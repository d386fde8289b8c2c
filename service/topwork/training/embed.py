"""Embedding of encoded images into exemplars, on all cores; fit and AddClass share it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from topwork.bundle import exemplars
from topwork.bundle.exemplars import Exemplars
from topwork.errors import ImageError
from topwork.inputs.duplicates import fingerprint
from topwork.inputs.image import pixel_digest, preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.thumbnail import thumbnail
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.runtime.backend import Session

T = TypeVar("T")

WINDOW = 16
"""Images in flight a core: bounds memory while the threads never run dry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """One training image: where it comes from, and what it shows."""

    name: str
    """What messages call it, such as its path."""
    label: str
    read: Callable[[], bytes]
    """Returns the encoded image; may raise OSError or ImageError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """An image that was not used."""

    name: str
    label: str
    reason: str
    """IMAGE_UNREADABLE, IMAGE_TOO_LARGE, or DUPLICATE: same pixels and label as an earlier one."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRow:
    """What one image's bytes become."""

    digest: bytes
    """32 bytes, the image digest."""
    fingerprint: NDArray[np.uint8]
    """(32,)"""
    embedding: NDArray[np.float32]
    """(D,)"""
    thumbnail: bytes


class Cache(Protocol):
    """Rows made before, of one backbone and one preprocess spec; used by several threads."""

    def get(self, content: bytes) -> EmbeddedRow | None:
        """Return the row of the file whose sha256 (32 bytes) is ``content``, if it is there."""

    def put(self, content: bytes, row: EmbeddedRow) -> None:
        """Keep that row, or leave it."""


def embed(
    sources: Iterable[ImageSource],
    session: Session,
    spec: PreprocessSpec,
    *,
    cores: int,
    limits: InputLimits = DEFAULT_LIMITS,
    cache: Cache | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Exemplars | None, list[Skipped]]:
    """Return the exemplars of all usable images (None if there are none), and the skipped ones.

    ``on_image`` is called once an image, usable or not, in the calling thread. An image is embedded
    alone, as in serving on CPU, so its embedding does not depend on its neighbours. What ``cache``
    has is taken from there, without another look at ``limits``.
    """

    def one(source: ImageSource) -> tuple[bytes, EmbeddedRow] | Skipped:
        try:
            content = source.read()
            key = hashlib.sha256(content).digest()
            row = cache.get(key) if cache is not None else None
            if row is None:
                row = _row(content, session, spec, limits)
                if cache is not None:
                    cache.put(key, row)
            return key, row
        except ImageError as error:
            return _skipped(source, error.reason, str(error))
        except OSError as error:
            return _skipped(source, ImageError.reason, f"the file cannot be read: {error}")

    used: list[ImageSource] = []
    rows: list[EmbeddedRow] = []
    contents: list[bytes] = []
    skipped: list[Skipped] = []
    first: dict[tuple[bytes, str], str] = {}
    with closing(_in_order(one, sources, cores)) as results:
        for source, found in results:
            on_image()
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            content, row = found
            key = (row.digest, source.label)
            if key in first:
                skipped.append(_skipped(source, "DUPLICATE", f"same pixels as {first[key]}"))
            else:
                first[key] = source.name
                used.append(source)
                rows.append(row)
                contents.append(content)
    if not rows:
        return None, skipped
    made = exemplars.make(
        np.stack([row.embedding for row in rows]),
        np.frombuffer(b"".join(row.digest for row in rows), dtype=np.uint8).reshape(-1, 32),
        np.stack([row.fingerprint for row in rows]),
        [source.label for source in used],
        contents=np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(-1, 32),
        names=[source.name for source in used],
        thumbnails=[row.thumbnail for row in rows],
    )
    return made, skipped


def _row(
    content: bytes, session: Session, spec: PreprocessSpec, limits: InputLimits
) -> EmbeddedRow:
    pixels = preprocess(content, spec, limits=limits)
    return EmbeddedRow(
        digest=bytes.fromhex(pixel_digest(pixels)),
        fingerprint=fingerprint(pixels),
        thumbnail=thumbnail(pixels),
        # Last: a run fills the CPU caches, after which the others take up to half as long more.
        embedding=session.run(pixels[None])[0],
    )


def _skipped(source: ImageSource, reason: str, message: str) -> Skipped:
    return Skipped(name=source.name, label=source.label, reason=reason, message=message)


def _in_order(
    work: Callable[[ImageSource], T], sources: Iterable[ImageSource], cores: int
) -> Generator[tuple[ImageSource, T], None, None]:
    """Yield every source with what ``work`` makes of it, in order, WINDOW a core in flight."""
    pool = ThreadPoolExecutor(cores)
    waiting: deque[tuple[ImageSource, Future[T]]] = deque()
    try:
        for source in sources:
            waiting.append((source, pool.submit(work, source)))
            if len(waiting) == WINDOW * cores:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        for oldest, future in waiting:
            yield oldest, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
