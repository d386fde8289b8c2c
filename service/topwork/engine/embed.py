"""From encoded images to exemplars, all cores at work: used by fit and by AddClass alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.bundle import exemplars
from topwork.bundle.duplicates import fingerprint
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.image import pixel_digest, preprocess
from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.bundle.preprocess import PreprocessSpec
from topwork.bundle.thumbnail import thumbnail
from topwork.engine.backend import Session
from topwork.errors import ImageError

CHUNK = 64
"""Images in flight a core: bounds memory while the threads never run dry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
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


def embed(
    sources: Iterable[Source],
    session: Session,
    spec: PreprocessSpec,
    *,
    cores: int,
    limits: Limits = DEFAULT_LIMITS,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Exemplars | None, list[Skipped]]:
    """Return the exemplars of all usable images (None if there are none), and the skipped ones.

    ``on_image`` is called once an image, usable or not, in the calling thread. An image is embedded
    alone, as in serving on CPU, so its embedding does not depend on its neighbours.
    """

    def one(source: Source) -> _Row | Skipped:
        try:
            pixels = preprocess(source.read(), spec, limits=limits)
        except ImageError as error:
            return _skipped(source, error.reason, str(error))
        except OSError as error:
            return _skipped(source, ImageError.reason, f"the file cannot be read: {error}")
        return _Row(
            source,
            bytes.fromhex(pixel_digest(pixels)),
            fingerprint(pixels),
            session.run(pixels[None])[0],
            thumbnail(pixels),
        )

    rows: list[_Row] = []
    skipped: list[Skipped] = []
    first: dict[tuple[bytes, str], str] = {}
    with ThreadPoolExecutor(cores) as pool:
        for source_batch in _chunks(sources, CHUNK * cores):
            for found in pool.map(one, source_batch):
                on_image()
                if isinstance(found, Skipped):
                    skipped.append(found)
                    continue
                source = found.source
                key = (found.digest, source.label)
                if key in first:
                    skipped.append(_skipped(source, "DUPLICATE", f"same pixels as {first[key]}"))
                else:
                    first[key] = source.name
                    rows.append(found)
    if not rows:
        return None, skipped
    made = exemplars.make(
        np.stack([row.embedding for row in rows]),
        np.frombuffer(b"".join(row.digest for row in rows), dtype=np.uint8).reshape(-1, 32),
        np.stack([row.fingerprint for row in rows]),
        [row.source.label for row in rows],
        names=[row.source.name for row in rows],
        thumbnails=[row.thumbnail for row in rows],
    )
    return made, skipped


@dataclass(frozen=True, slots=True)
class _Row:
    source: Source
    digest: bytes
    fingerprint: NDArray[np.uint8]
    embedding: NDArray[np.float32]
    thumbnail: bytes


def _skipped(source: Source, reason: str, message: str) -> Skipped:
    return Skipped(name=source.name, label=source.label, reason=reason, message=message)


def _chunks(sources: Iterable[Source], size: int) -> Iterable[list[Source]]:
    chunk: list[Source] = []
    for source in sources:
        chunk.append(source)
        if len(chunk) == size:
            yield chunk
            chunk = []
    yield chunk
