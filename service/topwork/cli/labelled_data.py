"""Labelled inputs of commands: photos, texts, audio or embeddings, as in the data of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topwork.cli.input_kinds import AUDIO, PHOTOS, TEXTS, VECTORS, FileKind
from topwork.client.inputs import Content
from topwork.inputs.data.layouts import find_kind
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.data.test_set import TestSet, held_out
from topwork.inputs.data.vectors import is_vectors, read_labelled, space_of_all

_KINDS = {kind.name: kind for kind in (PHOTOS, TEXTS, AUDIO)}


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
    name, found = find_kind(data, None)
    return Labelled(source=Source(kind=_KINDS[name]), found=found)


def read_test_data(data: Path) -> tuple[Source, TestSet]:
    """Return the test split of data with splits, else all of ``data``. Raises InvalidInput."""
    labelled = read_data(data)
    return labelled.source, held_out(labelled.found, data)
