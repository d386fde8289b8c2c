"""Inputs of commands in files: photos, texts, audio and embeddings, told apart by their names.

A file ``.txt`` is a text, ``.wav``, ``.flac``, ``.ogg`` and ``.mp3`` are audio, ``.npy`` and
``.npz`` have embeddings, and all others are photos. So is a folder, unless its only files are texts
or audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from topwork import Text
from topwork.cli.bucket_inputs import ListedObjects
from topwork.cli.input_kinds import (
    TEXTS,
    VECTORS,
    FileKind,
    Given,
    Item,
    kind_of_file,
    kind_of_files,
    only_kind,
    texts_of,
)
from topwork.client.inputs import Content
from topwork.errors import InvalidInput
from topwork.inputs import folders
from topwork.inputs.data.vectors import read_vectors
from topwork.inputs.folders import Listing, Omitted, Reason
from topwork.printable import file_name


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one kind, and the files that are left out."""

    kind: FileKind
    items: Sequence[Item]
    left_out: Sequence[tuple[Reason, str]]
    """Reasons and names."""


@dataclass(frozen=True, slots=True)
class Files:
    """Files of one kind, and those that are left out."""

    kind: FileKind
    paths: Sequence[Path]
    omitted: Sequence[Omitted]


def list_inputs(
    paths: Sequence[Path],
    *,
    field: str,
    texts: Sequence[str] = (),
    one_class: bool = False,
    objects: Sequence[ListedObjects] = (),
) -> Inputs:
    """Return ``texts``, given as they are, the inputs in files and folders, and those in buckets.

    Prints what is left out. Raises InvalidInput about ``field`` if there are inputs of two kinds,
    or none, or a text is not UTF-8, and as ``list_photos``.
    """
    items = [_given_text(text, number) for number, text in enumerate(texts, 1)]
    beside = [Given(name, TEXTS) for name, _ in items]
    beside += [each.given for each in objects]
    files = list_files(paths, field=field, one_class=one_class, beside=beside)
    for path in files.paths:
        if files.kind is VECTORS:
            items += [
                (vector.name, partial(VECTORS.content, vector.row.tobytes(), vector.space))
                for vector in read_vectors(path)
            ]
        else:
            items.append((file_name(path), partial(read_file, path, files.kind)))
    left_out = [(each.reason, file_name(each.path)) for each in files.omitted]
    for each in objects:
        items += each.items()
        left_out += each.left_out
    return Inputs(files.kind, items, left_out)


def list_files(
    paths: Sequence[Path],
    *,
    field: str,
    one_class: bool = False,
    beside: Sequence[Given] = (),
) -> Files:
    """Return the files among ``paths`` and those in their folders; see ``list_inputs``."""
    listings = [_listing(path, one_class=one_class) for path in paths]
    given = [_given(path, listing) for path, listing in zip(paths, listings, strict=True)]
    kind = only_kind([*beside, *given], field)
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


def _given(path: Path, listing: Listing) -> Given:
    kind = kind_of_files(listing) if path.is_dir() else kind_of_file(path)
    return Given(file_name(path), kind)
