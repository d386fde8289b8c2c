"""Trees of files: a folder on disk behind the same interface as an archive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from topwork.errors import InvalidInput
from topwork.inputs.folders import Listing, list_folder, list_photos, read_photo
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import file_name

MAX_TABLE_BYTES = 256 * 2**20
"""Raising it accepts longer manifests and annotation files, which are read into memory."""


class Tree(Protocol):
    """Files below a root folder; paths start with the root."""

    @property
    def root(self) -> Path:
        """Return the folder, or the file of the archive."""

    def list_folder(self, folder: Path) -> Listing:
        """Return the photos and sub-folders of a folder. Raises InvalidInput."""

    def list_class(self, folder: Path) -> Listing:
        """Return the photos below a class folder. Raises InvalidInput if it contains splits."""

    def reader(self, path: Path) -> Callable[[], bytes]:
        """Return a function that reads a photo, as ``ImageSource.read``."""

    def file(self, path: Path) -> Path | None:
        """Return the path of a photo if it is a file of its own."""

    def exists(self, path: Path) -> bool:
        """Return True if there is a file, or something else that cannot be read as one."""

    def read_table(self, path: Path) -> bytes:
        """Return a file of at most MAX_TABLE_BYTES. Raises InvalidInput."""


class DiskTree:
    """Tree of a folder on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list_folder(self, folder: Path) -> Listing:
        """See Tree."""
        return list_folder(folder)

    def list_class(self, folder: Path) -> Listing:
        """See Tree."""
        return list_photos(folder, one_class=True)

    def reader(self, path: Path) -> Callable[[], bytes]:
        """See Tree."""
        return partial(read_photo, path, most_bytes=DEFAULT_LIMITS.max_image_bytes)

    def file(self, path: Path) -> Path | None:
        """See Tree."""
        return path

    def exists(self, path: Path) -> bool:
        """See Tree."""
        try:
            return path.exists()
        except (OSError, ValueError):  # a part that is too long, or a zero byte
            return False

    def read_table(self, path: Path) -> bytes:
        """See Tree."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_TABLE_BYTES + 1)
        except OSError as error:
            text = f"{file_name(path)} cannot be read: {error.strerror}"
            raise InvalidInput(text, field="data") from error
        return check_table_length(content, path)


def check_table_length(content: bytes, path: Path) -> bytes:
    """Return the content of a manifest. Raises InvalidInput if it is too long."""
    if len(content) > MAX_TABLE_BYTES:
        raise InvalidInput(
            f"{file_name(path)} is longer than {MAX_TABLE_BYTES} bytes, the limit of manifests and "
            "annotations",
            field="data",
        )
    return content
