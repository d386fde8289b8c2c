"""Tree of the files of one kind: what is a text file beside photos is the data of a text model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from topwork.inputs.data.trees import Tree
from topwork.inputs.folders import Listing, Omitted


class KindTree:
    """Tree of the files with some extensions, in lower case; all others are left out."""

    def __init__(self, tree: Tree, suffixes: Collection[str]) -> None:
        self._tree = tree
        self._suffixes = suffixes
        self.root = tree.root

    def list_folder(self, folder: Path) -> Listing:
        """See Tree."""
        return self._select(self._tree.list_folder(folder))

    def list_class(self, folder: Path) -> Listing:
        """See Tree."""
        return self._select(self._tree.list_class(folder))

    def reader(self, path: Path) -> Callable[[], bytes]:
        """See Tree."""
        return self._tree.reader(path)

    def file(self, path: Path) -> Path | None:
        """See Tree."""
        return self._tree.file(path)

    def exists(self, path: Path) -> bool:
        """See Tree."""
        return self._tree.exists(path)

    def read_table(self, path: Path) -> bytes:
        """See Tree."""
        return self._tree.read_table(path)

    def _select(self, listing: Listing) -> Listing:
        texts = [omission.path for omission in listing.omitted if omission.reason == "text"]
        files = [path for path in (*listing.files, *texts) if self._is_of_kind(path)]
        omitted = [
            omission
            for omission in listing.omitted
            if omission.reason != "text" or not self._is_of_kind(omission.path)
        ]
        omitted += [Omitted("kind", path) for path in listing.files if not self._is_of_kind(path)]
        return Listing(files=tuple(sorted(files)), omitted=tuple(omitted), folders=listing.folders)

    def _is_of_kind(self, path: Path) -> bool:
        return path.suffix.casefold() in self._suffixes
