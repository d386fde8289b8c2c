"""Kinds of inputs in files, told apart by their names: photos, texts, audio and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from topwork import Audio, Embedding, Text
from topwork.audio_files import is_audio
from topwork.client.inputs import Content
from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.vectors import SUFFIXES
from topwork.inputs.folders import Listing
from topwork.limits import DEFAULT_LIMITS

TEXT_SUFFIX = ".txt"

Item: TypeAlias = tuple[str, Callable[[], Content]]
"""Name of an input, and a function that reads it; it may raise OSError or ImageError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of inputs, as files have it."""

    name: str
    """As in ``inputs.kinds``."""
    noun: str
    """What a command calls one of them."""
    most_bytes: int
    """Length of a file that may be sent."""
    content: Callable[[bytes, str], Content]
    """Returns bytes, and the space of an embedding, as they are sent. Raises ImageError."""


def _text(data: bytes, _space: str = "") -> Text:
    try:
        return Text(data.decode())
    except UnicodeDecodeError as error:
        text = f"the text is not UTF-8: {error.reason} at byte {error.start}"
        raise ImageError(text, reason="TEXT_INVALID") from None


PHOTOS = FileKind(
    name="image",
    noun="photo",
    most_bytes=DEFAULT_LIMITS.max_image_bytes,
    content=lambda data, _space: data,
)
TEXTS = FileKind(
    name="text",
    noun="text",
    most_bytes=DEFAULT_LIMITS.max_text_bytes,
    content=_text,
)
AUDIO = FileKind(
    name="audio",
    noun="recording",
    most_bytes=DEFAULT_LIMITS.max_audio_bytes,
    content=lambda data, _space: Audio(data),
)
VECTORS = FileKind(
    name="embedding",
    noun="embedding",
    most_bytes=0,
    content=Embedding,
)


@dataclass(frozen=True, slots=True)
class Given:
    """An argument of a command, and the kind of its inputs."""

    name: str
    kind: FileKind


def kind_of_file(path: Path) -> FileKind:
    """Return the kind of a file that is given by itself."""
    if path.suffix in SUFFIXES:
        return VECTORS
    return kind_of_files(Listing(files=(path,), omitted=()))


def kind_of_files(listing: Listing) -> FileKind:
    """Return the kind of the files below a folder, which are no embeddings."""
    if listing.files and all(map(is_audio, listing.files)):
        return AUDIO
    return TEXTS if is_texts(listing) else PHOTOS


def is_texts(listing: Listing) -> bool:
    """Return True if a folder has texts: all its files are, and there is one."""
    texts = texts_of(listing).files
    return bool(texts) and all(_has_text_name(path) for path in listing.files)


def texts_of(listing: Listing) -> Listing:
    """Return the listing of a folder's texts; one of photos leaves most of them out."""
    texts = {each.path for each in listing.omitted if each.reason == "text"}
    texts = {path for path in [*texts, *listing.files] if _has_text_name(path)}
    return Listing(
        files=tuple(sorted(texts)),
        omitted=tuple(each for each in listing.omitted if each.path not in texts),
        folders=listing.folders,
    )


def only_kind(given: Iterable[Given], field: str) -> FileKind:
    """Return the kind that all have. Raises InvalidInput."""
    found: dict[str, Given] = {}
    for each in given:
        found.setdefault(each.kind.name, each)
    if len(found) > 1:
        first, second, *_ = found.values()
        raise InvalidInput(
            f"{first.name} has {first.kind.noun}s and {second.name} has {second.kind.noun}s: a "
            "model takes inputs of one kind",
            field=field,
        )
    return next(iter(found.values())).kind


def _has_text_name(path: Path) -> bool:
    return path.suffix.casefold() == TEXT_SUFFIX
