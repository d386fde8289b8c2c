"""Inputs of commands in files: photos, texts, audio and embeddings, told apart by their names.

A file ``.txt`` is a text, ``.wav``, ``.flac``, ``.ogg`` and ``.mp3`` are audio, ``.npy`` and
``.npz`` have embeddings, and all others are photos. So is a folder, unless its only files are texts
or audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import click

from topwork import Audio, Embedding, Text
from topwork.audio_files import is_audio
from topwork.client.inputs import Content
from topwork.errors import ImageError, InvalidInput
from topwork.inputs import folders
from topwork.inputs.data.vectors import SUFFIXES, read_vectors
from topwork.inputs.folders import Listing, Omitted
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import file_name

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
class Inputs:
    """Inputs of one kind, and the files that are left out."""

    kind: FileKind
    items: Sequence[Item]
    omitted: Sequence[Omitted]


@dataclass(frozen=True, slots=True)
class Files:
    """Files of one kind, and those that are left out."""

    kind: FileKind
    paths: Sequence[Path]
    omitted: Sequence[Omitted]


def list_inputs(
    paths: Sequence[Path], *, field: str, texts: Sequence[str] = (), one_class: bool = False
) -> Inputs:
    """Return the inputs in files and folders, after ``texts``, given as they are.

    Prints what is left out. Raises InvalidInput about ``field`` if there are inputs of two kinds,
    or none, or a text is not UTF-8, and as ``list_photos``.
    """
    items = [_given_text(text, number) for number, text in enumerate(texts, 1)]
    beside = [_Given(name, TEXTS) for name, _ in items]
    files = list_files(paths, field=field, one_class=one_class, beside=beside)
    for path in files.paths:
        if files.kind is VECTORS:
            items += [
                (vector.name, partial(VECTORS.content, vector.row.tobytes(), vector.space))
                for vector in read_vectors(path)
            ]
        else:
            items.append((file_name(path), partial(read_file, path, files.kind)))
    return Inputs(files.kind, items, files.omitted)


def list_files(
    paths: Sequence[Path],
    *,
    field: str,
    one_class: bool = False,
    beside: Sequence[_Given] = (),
) -> Files:
    """Return the files among ``paths`` and those in their folders; see ``list_inputs``."""
    listings = [_listing(path, one_class=one_class) for path in paths]
    given = [_given(path, listing) for path, listing in zip(paths, listings, strict=True)]
    kind = _only([*beside, *given], field)
    if kind is TEXTS:
        listings = [*map(texts_of, listings)]
    omitted = [each for listing in listings for each in listing.omitted]
    for left_out in folders.group(omitted):
        click.echo(left_out.line(), err=True)
    files = [path for listing in listings for path in listing.files]
    if not files and not beside:
        below = ", ".join(map(file_name, paths))
        raise InvalidInput(f"there is no {kind.noun} below {below}", field=field)
    return Files(kind, files, omitted)


def read_bytes(path: Path, kind: FileKind) -> bytes:
    """Return the bytes of a file. Raises ImageError if it is unreadable or too large to send."""
    return folders.read_photo(path, most_bytes=kind.most_bytes)


def read_file(path: Path, kind: FileKind) -> Content:
    """Return the content of a file, as ``read_bytes``."""
    return kind.content(read_bytes(path, kind), "")


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


@dataclass(frozen=True, slots=True)
class _Given:
    name: str
    kind: FileKind


def _given_text(text: str, number: int) -> Item:
    """Return a text of the command line as an input. Raises InvalidInput."""
    name = f"--text {number}"
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 are surrogates
        raise InvalidInput(f"{name} is not UTF-8", field="text") from None
    return name, partial(Text, text)


def _listing(path: Path, *, one_class: bool) -> Listing:
    if path.is_dir():
        return folders.list_photos(path, one_class=one_class)
    return Listing(files=(path,), omitted=())


def _given(path: Path, listing: Listing) -> _Given:
    if not path.is_dir() and path.suffix in SUFFIXES:
        return _Given(file_name(path), VECTORS)
    kind = TEXTS if is_texts(listing) else PHOTOS
    if listing.files and all(map(is_audio, listing.files)):
        kind = AUDIO
    return _Given(file_name(path), kind)


def _has_text_name(path: Path) -> bool:
    return path.suffix.casefold() == TEXT_SUFFIX


def _only(given: Iterable[_Given], field: str) -> FileKind:
    """Return the kind that all have. Raises InvalidInput."""
    found: dict[str, _Given] = {}
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
