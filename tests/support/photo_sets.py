"""Small sets of labelled files in several layouts, and summaries of what a scan finds."""

from __future__ import annotations

import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from topwork_trainer.data import Photos

ROWS = [(f"{label}/{number}.jpg", label) for label in ("a", "b") for number in range(6)]
"""Path and label of six files of each of two classes."""


def write(root: Path, rows: Iterable[tuple[str, str]] = ROWS) -> Path:
    """Write a file for each path, with the path as its content, and return the folder."""
    for path, _ in rows:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\0" + path.encode())
    return root


def csv(rows: Iterable[Sequence[str]] = ROWS, header: str = "path,label") -> str:
    """Return the text of a manifest."""
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def counts(photos: Photos) -> dict[str, int]:
    """Return the number of training photos of each label."""
    return dict(Counter(photo.label for photo in photos.train))


def left_out(photos: Photos) -> dict[str, tuple[str, ...]]:
    """Return the names of files and folders that are left out, by reason."""
    return {group.reason: group.names for group in photos.left_out}


def contents(photos: Photos) -> dict[str, bytes]:
    """Return the content of each training photo by name."""
    return {photo.name: photo.read() for photo in photos.train}


def zipped(path: Path, folder: Path, *, below: str = "", compression: int = 0) -> Path:
    """Zip the files of a folder, below a top folder."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{below}{file.relative_to(folder)}")
    return path


def tarred(path: Path, folder: Path, *, below: str = "./", mode: str = "w") -> Path:
    """Put a folder into a tar archive, below a top folder."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # a str, not a Literal
        archive.add(folder, below)
    return path


def zip_of(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a zip archive of members with any names."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
