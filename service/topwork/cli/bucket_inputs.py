"""Inputs of commands in buckets: objects, listed at once and read when it is their turn."""

from __future__ import annotations

import os.path
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from topwork import bucket_files
from topwork.bucket_files import BucketFile
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
from topwork.inputs.data.vectors import MOST_BYTES, decode_vectors
from topwork.inputs.folders import Listing, Omitted, Reason
from topwork.printable import printable


@dataclass(frozen=True, slots=True)
class ListedObjects:
    """Objects of one kind for which a URL stands, and those of its folder that are left out."""

    given: Given
    files: Sequence[BucketFile]
    left_out: Sequence[tuple[Reason, str]] = ()

    def items(self) -> Iterator[Item]:
        """Yield the inputs, named by their URLs. Reads embeddings. Raises InvalidInput."""
        kind = self.given.kind
        for file in self.files:
            name = printable(file.url)
            if kind is not VECTORS:
                yield name, partial(_read, file, kind)
                continue
            for vector in decode_vectors(file.read(most_bytes=MOST_BYTES), name):
                yield vector.name, partial(VECTORS.content, vector.row.tobytes(), vector.space)


def list_objects(url: str, *, field: str) -> ListedObjects:
    """Return the objects at a URL, of a pattern, or of a folder by the rule of local folders.

    Only the names of objects tell whether they are left out. Prints what is. Raises InvalidInput.
    """
    found = bucket_files.find(url, field=field)
    name = printable(url)
    if not found.is_folder:
        by_suffix = {os.path.splitext(f.url)[1]: f.url for f in found.files}  # noqa: PTH122  # 40 us faster
        kinds = [Given(printable(url), kind_of_file(Path(url))) for url in by_suffix.values()]
        return ListedObjects(Given(name, only_kind(kinds, field)), found.files)
    root, key = bucket_files.split(url)
    files = {file.url.removeprefix(f"{root}/"): file for file in found.files}
    listing = _listing(files, key.rstrip("/"))
    kind = kind_of_files(listing)
    if kind is TEXTS:
        listing = texts_of(listing)
    left_out = [(each.reason, printable(f"{root}/{each.path}")) for each in listing.omitted]
    for group in folders.by_reason(left_out):
        click.echo(group.line(), err=True)
    if not listing.files:
        raise InvalidInput(f"there is no {kind.noun} below {name}", field=field)
    return ListedObjects(Given(name, kind), [files[str(path)] for path in listing.files], left_out)


def _read(file: BucketFile, kind: FileKind) -> Content:
    """Return the content of an object. Raises ImageError."""
    return kind.content(file.read(most_bytes=kind.most_bytes), "")


def _listing(names: Iterable[str], folder: str) -> Listing:
    """Return the listing of all objects below a folder, of which the names are known."""
    files: dict[Path, list[Path]] = defaultdict(list)
    omitted: list[Omitted] = []
    for name in names:
        path = Path(name)
        below = path.relative_to(folder).parts
        reason: Reason | None = next(filter(None, map(folders.reason_of_name, below)), None)
        if reason is None and folders.has_text_name(path):
            reason = "text"
        if reason is None:
            files[path.parent].append(path)
        else:
            omitted.append(Omitted(reason, path))
    listings = [folders.listing_of(own, (), ()) for own in files.values()]
    return Listing(
        files=tuple(sorted(path for each in listings for path in each.files)),
        omitted=(*omitted, *(left_out for each in listings for left_out in each.omitted)),
    )
