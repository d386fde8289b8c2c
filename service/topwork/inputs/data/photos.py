"""Labelled photos, by split and label, as the readers return them."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from topwork.inputs.folders import Reason
from topwork.inputs.image_source import ImageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo(ImageSource):
    """A labelled photo; its name is its escaped path below the data's folder or archive."""

    path: Path | None = None
    """File of the photo; None if it is part of an archive or a Parquet file."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and values of the manifest's columns without a meaning, such as ``camera``."""

    def open(self) -> BinaryIO:
        """Open the encoded photo. Raises OSError or ImageError."""
        return io.BytesIO(self.read()) if self.path is None else self.path.open("rb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """All photos of one split, or of data without splits, as a reader found them."""

    photos: Mapping[str, Sequence[Photo]]
    """By label."""
    lost: Collection[str] = ()
    """Labels of which photos may be lost, for example behind dead links."""
    folders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of the class folders by label; empty if the labels are not folders."""

    def classes(self) -> list[str]:
        """Return the labels that have photos, or may have lost them."""
        return [label for label, photos in self.photos.items() if photos or label in self.lost]

    def photos_of(self, labels: Sequence[str]) -> tuple[Photo, ...]:
        """Return the photos of the labels."""
        return tuple(photo for label in labels for photo in self.photos.get(label, ()))

    def omit(self, reason: Reason, labels: Collection[str]) -> list[tuple[Reason, str]]:
        """Return the folders of the labels, or else their photos, with the reason to omit them."""
        return [
            (reason, name)
            for label in sorted(labels)
            for name in self.folders.get(label) or [photo.name for photo in self.photos[label]]
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Result of a reader: photos by split and label, before labels are selected and checked."""

    train: Split
    """Empty if all photos are in other splits."""
    held_out: Mapping[str, Split] = field(default_factory=dict)
    """By the name of the split."""
    omitted: Sequence[tuple[Reason, str]]
    """Names of files and folders that are left out, with the reason."""
    notes: Sequence[str] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Columns without a meaning, by the name of their manifest."""
    hint: str = ""
    """Suggestion for an error about too few classes."""
