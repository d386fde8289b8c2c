"""Embedding of inputs, such as encoded images, into exemplars; used by fit and AddClass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from topwork.bundle import exemplars
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.groups import GROUP_BYTES, group_id
from topwork.bundle.store import Repository
from topwork.errors import ImageError, Unavailable
from topwork.in_order import in_order
from topwork.inputs.image_source import ImageSource
from topwork.inputs.kinds import InputKind, kind_of
from topwork.inputs.spec import InputSpec
from topwork.inputs.thumbnail import SIDE
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.storage.storage import Unreachable
from topwork.training.backbone_session import EmbeddingSession
from topwork.training.gathering import GatheredEmbeddings

S = TypeVar("S", bound=InputSpec)

WINDOW = 16
"""Images in flight per core; raising it uses more memory, lowering it may leave threads idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Image that is not used."""

    name: str
    label: str
    reason: str
    """IMAGE_UNREADABLE, IMAGE_TOO_LARGE, EMBEDDING_INVALID, or DUPLICATE: digest and label of an
    earlier image."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRow:
    """Embedding, digest, fingerprint and thumbnail of one image."""

    digest: bytes
    """Image digest, 32 bytes."""
    fingerprint: NDArray[np.uint8]
    """(32,)"""
    embedding: NDArray[np.float32]
    """(D,)"""
    thumbnail: bytes


Embedded: TypeAlias = tuple[bytes, EmbeddedRow] | Skipped
"""sha256 of a file (32 bytes) with its row, or the reason not to use it."""


@runtime_checkable
class EmbeddedBefore(Protocol):
    """An ImageSource that needs no session: its file was embedded earlier, and may be gone."""

    @property
    def group_id(self) -> bytes:
        """Id of its group, GROUP_BYTES; zeros: none."""

    def embedded(self) -> Embedded:
        """Return what ``embed_each`` yielded for it."""


class Cache(Protocol):
    """Cache of rows of one backbone and one preprocess spec; used by several threads."""

    def get(self, content: bytes) -> EmbeddedRow | None:
        """Return the row of the file with this sha256 (32 bytes), or None."""

    def put(self, content: bytes, row: EmbeddedRow) -> None:
        """Store the row, or ignore it."""


def embed(
    sources: Iterable[ImageSource],
    session: EmbeddingSession,
    spec: InputSpec,
    *,
    cores: int,
    preview_pixels: int = SIDE,
    limits: InputLimits = DEFAULT_LIMITS,
    cache: Cache | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Exemplars | None, list[Skipped]]:
    """Return the exemplars of all usable images (None if there are none) and the skipped images.

    They are inputs of the kind of ``spec``: images, or embeddings of the client.
    ``preview_pixels`` is the side of the thumbnails, as in the manifest. ``on_image`` is called
    once per image, usable or not, in the calling thread. Each image is embedded alone, as in
    serving on CPU, so its embedding does not depend on other images. Cached rows are used without
    checking ``limits``.
    """
    kind = kind_of(spec)
    used: list[ImageSource] = []
    embeddings = GatheredEmbeddings()
    digests, fingerprints, contents = bytearray(), bytearray(), bytearray()
    thumbnails: list[bytes] = []
    skipped: list[Skipped] = []
    first: dict[tuple[bytes, str], str] = {}
    done = embed_each(
        sources,
        session,
        spec,
        cores=cores,
        preview_pixels=preview_pixels,
        limits=limits,
        cache=cache,
    )
    with closing(done) as results:
        for source, result in results:
            on_image()
            if isinstance(result, Skipped):
                skipped.append(result)
                continue
            content, row = result
            key = (row.digest, source.label)
            if key in first:
                skipped.append(_skipped(source, "DUPLICATE", f"{kind.same} as {first[key]}"))
            else:
                first[key] = source.name
                used.append(source)
                embeddings.append(row.embedding)
                digests += row.digest
                fingerprints += row.fingerprint.tobytes()
                contents += content
                thumbnails.append(row.thumbnail)
    if not used:
        return None, skipped
    used_exemplars = exemplars.make(
        embeddings.parts(),
        np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        np.frombuffer(fingerprints, dtype=np.uint8).reshape(-1, 32),
        [source.label for source in used],
        contents=np.frombuffer(contents, dtype=np.uint8).reshape(-1, 32),
        names=[source.name for source in used],
        thumbnails=thumbnails,
        groups=np.frombuffer(b"".join(map(_group_id, used)), dtype=np.uint8).reshape(
            -1, GROUP_BYTES
        ),
    )
    return used_exemplars, skipped


def embed_each(
    sources: Iterable[ImageSource],
    session: EmbeddingSession,
    spec: InputSpec,
    *,
    cores: int,
    preview_pixels: int = SIDE,
    limits: InputLimits = DEFAULT_LIMITS,
    cache: Cache | None = None,
) -> Generator[tuple[ImageSource, Embedded], None, None]:
    """Yield each source with its row, in order, duplicates too; see ``embed``."""
    kind = kind_of(spec)

    def embed_source(source: ImageSource) -> Embedded:
        if isinstance(source, EmbeddedBefore):
            return source.embedded()
        try:
            content = source.read()
            key = hashlib.sha256(content).digest()
            row = cache.get(key) if cache is not None else None
            if row is None:
                row = _row(content, session, kind, spec, limits, preview_pixels)
                if cache is not None:
                    cache.put(key, row)
            return key, row
        except Unreachable:  # of a stored image; see ``stored_image``
            raise
        except ImageError as error:
            return _skipped(source, error.reason, str(error))
        except OSError as error:
            return _skipped(source, ImageError.reason, f"the file cannot be read: {error}")

    return in_order(embed_source, sources, threads=cores, ahead=WINDOW * cores)


def stored_image(repository: Repository, digest: str) -> bytes:
    """Return an image of a repository, to be embedded.

    An image that cannot be read must not be left out, as an unreadable file of a user is. Raises
    Corrupt, Unreachable if another attempt may succeed, and Unavailable for other errors.
    """
    try:
        return repository.image(digest)
    except Unreachable:
        raise
    except OSError as error:
        text = f"the repository cannot be used: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error


def _group_id(source: ImageSource) -> bytes:
    return source.group_id if isinstance(source, EmbeddedBefore) else group_id(source.group)


def _row(
    content: bytes,
    session: EmbeddingSession,
    kind: InputKind[S, Any],
    spec: S,
    limits: InputLimits,
    preview_pixels: int,
) -> EmbeddedRow:
    prepared = kind.prepare(content, spec, limits=limits)
    return EmbeddedRow(
        digest=bytes.fromhex(kind.digest(prepared)),
        fingerprint=kind.fingerprint(content, prepared),
        thumbnail=kind.preview(content, prepared, preview_pixels),
        # Last: a run evicts the CPU caches; the functions above would take up to 50 % longer.
        embedding=session.run(prepared[None])[0],
    )


def _skipped(source: ImageSource, reason: str, message: str) -> Skipped:
    return Skipped(name=source.name, label=source.label, reason=reason, message=message)
