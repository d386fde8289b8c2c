"""Reader of manifests: tables whose rows name a photo, its label, its split and its group."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.data.tables import Table, clip, list_columns
from topwork.inputs.data.trees import Tree
from topwork.inputs.folders import Reason
from topwork.inputs.splits import split_role
from topwork.printable import file_name, printable

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file_name", "filepath", "filename", "file", "image"),
    "label": ("label", "class", "category"),
    "split": ("split",),
    "group": ("group",),
}
"""Names of columns by their meaning, in upper or lower case; of several the first is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A table whose rows name photos."""

    table: Table
    folder: Path
    """Folder to which its paths are relative."""
    split: str = ""
    """Split of all its photos; empty: as its column says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A photo that a manifest or annotations name."""

    place: str
    """File and line, or another place."""
    path: Path
    name: str
    """Escaped path, as given."""
    label: str
    """In composed form; empty: none."""
    split: str = ""
    """Name of the split, such as ``test``; empty: the data has no splits."""
    group: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and values of the columns without a meaning."""


@dataclass(slots=True, kw_only=True)
class Collector:
    """Collects entries, each photo once, and refuses entries that contradict each other."""

    tree: Tree
    name: str
    """Escaped name of the file with the entries, for messages."""
    omitted: list[tuple[Reason, str]] = field(default_factory=list)
    _entries: dict[str, Entry] = field(default_factory=dict)
    _repeated: int = 0

    def add(self, entry: Entry) -> None:
        """Add an entry. Raises InvalidInput if an earlier entry of the photo differs."""
        first = self._entries.setdefault(os.path.normpath(entry.path), entry)
        if first is entry:
            return
        self._repeated += 1
        for kind in ("label", "split", "group"):
            before, now = getattr(first, kind), getattr(entry, kind)
            if before != now:
                raise InvalidInput(
                    printable(
                        f"{clip(entry.name)} has two {kind}s: {clip(before)!r} ({first.place}) and "
                        f"{clip(now)!r} ({entry.place})"
                    ),
                    field="data",
                )

    def found(self, columns: Mapping[str, Sequence[str]] | None = None) -> Found:
        """Return the collected photos; ``columns`` are those without a meaning, by manifest."""
        roles: dict[str, dict[str, list[Photo]]] = defaultdict(lambda: defaultdict(list))
        lost: dict[str, set[str]] = defaultdict(set)
        for entry in sorted(self._entries.values(), key=lambda entry: entry.path):
            split = "" if split_role(entry.split) == "train" else entry.split
            if not entry.label:
                self.omitted.append(("unlabelled", entry.name))
                continue
            photos = roles[split][entry.label]
            if not self.tree.exists(entry.path):
                self.omitted.append(("missing", entry.name))
                lost[split].add(entry.label)
                continue
            photos.append(
                Photo(
                    name=entry.name,
                    label=entry.label,
                    read=self.tree.reader(entry.path),
                    path=self.tree.file(entry.path),
                    group=entry.group,
                    columns=entry.columns,
                )
            )
        splits = {name: Split(photos=photos, lost=lost[name]) for name, photos in roles.items()}
        more = [f"{self._repeated:,} rows of {self.name} repeat others and are used once"]
        return Found(
            train=splits.pop("", Split(photos={})),
            held_out={printable(name): split for name, split in sorted(splits.items())},
            omitted=self.omitted,
            notes=more if self._repeated else [],
            columns=columns or {},
        )


def read_manifests(tree: Tree, manifests: Sequence[Manifest]) -> Found:
    """Return the photos of manifests, whose paths are relative to their folders.

    Raises InvalidInput if columns of paths or labels are missing, a row has no path or an unknown
    split, a path is a URL, or a photo has two labels, splits or groups.
    """
    collector = Collector(tree=tree, name=manifests[0].table.name)
    columns = {manifest.table.name: _collect(manifest, collector) for manifest in manifests}
    return collector.found(columns)


def _collect(manifest: Manifest, collector: Collector) -> list[str]:
    """Add the rows of a manifest; return its columns without a meaning."""
    table = manifest.table
    columns = find_columns(table)
    others = [column for column in table.columns if column not in columns.values()]
    below = manifest.folder.relative_to(collector.tree.root)
    for row in table.rows:
        values = {
            kind: _text(table, row.place, column, row.values.get(column))
            for kind, column in columns.items()
        }
        if not values["path"]:
            raise table.fail(row.place, f"the column {clip(columns['path'])!r} is empty")
        split = manifest.split or values.get("split", "")
        if "split" in columns and split_role(split) is None:
            raise table.fail(row.place, f"the split {clip(split)!r} is none of train, val and test")
        path = locate(collector.tree, table, row.place, [manifest.folder], values["path"])
        is_absolute = Path(values["path"]).is_absolute()
        given = path if is_absolute else path.relative_to(manifest.folder)
        collector.add(
            Entry(
                place=f"{table.name}, {row.place}",
                path=path,
                name=file_name(os.path.normpath(below / given)),
                label=values["label"],
                split=split,
                group=values.get("group", ""),
                columns=tuple((column, _shown(row.values.get(column))) for column in others),
            )
        )
    return others


def _shown(value: object) -> str:
    """Return a value of a column without a meaning; a list or an object is none."""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def find_columns(table: Table) -> dict[str, str]:
    """Return the table's column of each meaning. Raises InvalidInput if paths or labels lack."""
    columns = known_columns(table.columns)
    for kind, text in (("path", "paths"), ("label", "labels")):
        if kind not in columns:
            shown = list_columns(table.columns) or "none"
            raise InvalidInput(
                printable(
                    f"{table.name} has no column of {text}: name one of its columns "
                    f"{' or '.join(COLUMNS[kind])}; they are: {shown}"
                ),
                field="data",
            )
    return columns


def known_columns(
    names: Sequence[str], meanings: Mapping[str, tuple[str, ...]] = COLUMNS
) -> dict[str, str]:
    """Return the column of each meaning that has one."""
    by_name = {name.strip().casefold(): name for name in reversed(names)}
    return {
        kind: next(by_name[name] for name in known if name in by_name)
        for kind, known in meanings.items()
        if any(name in by_name for name in known)
    }


def locate(tree: Tree, table: Table, place: str, folders: Sequence[Path], given: str) -> Path:
    """Return the path of a photo: in the first of ``folders`` that has it, else in the first.

    A backslash separates folders, as on Windows, if no file is named with it. Raises InvalidInput
    if the path is a URL.
    """
    if "://" in given:
        problem = "is a URL: photos are not downloaded; download them and name their files"
        raise table.fail(place, f"{clip(given)} {problem}")
    spellings = dict.fromkeys((given, given.replace("\\", "/")))
    candidates = [folder / spelling for spelling in spellings for folder in folders]
    return next((path for path in candidates if tree.exists(path)), candidates[0])


def _text(table: Table, place: str, column: str, value: object) -> str:
    """Return a value as text in composed form, without white space at its ends."""
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        text = str(value).strip()
        return text if column in COLUMNS["path"] else unicodedata.normalize("NFC", text)
    problem = f"the column {clip(column)!r} has a {type(value).__name__}, not a text"
    raise table.fail(place, problem)
