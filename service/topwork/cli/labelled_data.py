"""Labelled inputs of commands: photos, texts or embeddings, as in the data of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topwork.cli.input_files import (
    PHOTOS,
    TEXTS,
    VECTORS,
    FileKind,
    is_texts,
    texts_of,
)
from topwork.client.inputs import Content
from topwork.inputs import folders
from topwork.inputs.data.class_folders import read_class_folders
from topwork.inputs.data.layouts import read
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.data.test_set import TestSet, held_out
from topwork.inputs.data.trees import DiskTree
from topwork.inputs.data.vectors import is_vectors, read_labelled, space_of_all
from topwork.inputs.folders import Listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Kind of the inputs of some data, and the space of embeddings."""

    kind: FileKind
    space: str = ""

    def content(self, photo: Photo) -> Content:
        """Return an input as it is sent. Raises OSError or ImageError."""
        return self.kind.content(photo.read(), self.space)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Data to learn from."""

    source: Source
    found: Found


def read_data(data: Path) -> Labelled:
    """Return all splits of ``data``, read as `topwork-train fit` does. Raises InvalidInput."""
    if is_vectors(data):
        classes = read_labelled(data)
        space, _ = space_of_all(vector for own in classes.values() for vector in own)
        photos = {
            label: [Photo(name=vector.name, label=label, read=vector.row.tobytes) for vector in own]
            for label, own in classes.items()
        }
        return Labelled(
            source=Source(kind=VECTORS, space=space),
            found=Found(train=Split(photos=photos), omitted=()),
        )
    if data.is_dir() and is_texts(folders.list_photos(data)):
        return Labelled(
            source=Source(kind=TEXTS), found=read_class_folders(_Texts(data), data, None)
        )
    return Labelled(source=Source(kind=PHOTOS), found=read(data, None))


def read_test_data(data: Path) -> tuple[Source, TestSet]:
    """Return the test split of data with splits, else all of ``data``. Raises InvalidInput."""
    labelled = read_data(data)
    return labelled.source, held_out(labelled.found, data)


class _Texts(DiskTree):
    """Tree of a folder on disk whose files are texts."""

    def list_folder(self, folder: Path) -> Listing:
        """See Tree."""
        return texts_of(super().list_folder(folder))

    def list_class(self, folder: Path) -> Listing:
        """See Tree."""
        return texts_of(super().list_class(folder))
