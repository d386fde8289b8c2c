"""Reader of class folders: each folder is a class, below the root or below each split."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.data.trees import Tree
from topwork.inputs.folders import LOSSES, Listing, Omitted
from topwork.inputs.splits import splits
from topwork.printable import file_name


def read_class_folders(tree: Tree, root: Path, classes: AbstractSet[str] | None) -> Found:
    """Return the photos below each folder of ``root``, labelled with the folder's name.

    ``topwork.inputs.folders`` decides which files are photos. Folders with the same name in
    composed form (NFC) are one class. If ``root`` contains train and val or test, each with one
    folder per class, the first is the training set and the others are held out; folders that
    ``classes`` names are classes.

    Raises InvalidInput if a folder cannot be read or folders may be splits as well as classes.
    """
    top = tree.list_folder(root)
    if classes is not None and classes <= _by_label(top).keys():
        train, others = _read(tree, top, classes), dict[str, _Classes]()
    else:
        train, others = _split(tree, root, _read(tree, top))
    labels = sorted(train.split.classes() if classes is None else classes)
    return Found(
        train=train.split,
        held_out={name: other.split for name, other in others.items()},
        omitted=[
            (omission.reason, _name(tree, omission.path))
            for found in (train, *others.values())
            for omission in found.omitted
        ],
        notes=tuple(_notes(train, labels)),
        hint=_hint(tree, train, labels),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Classes:
    """A folder that contains one folder per class."""

    folders: Mapping[str, Sequence[Path]]
    """By label; a label has several folders if their names differ only in Unicode form."""
    split: Split
    omitted: Sequence[Omitted]


def _by_label(listing: Listing) -> dict[str, list[Path]]:
    """Return the folders of a listing by label, the folder's name in composed form (NFC)."""
    folders: dict[str, list[Path]] = defaultdict(list)
    for folder in listing.folders:
        folders[unicodedata.normalize("NFC", folder.name)].append(folder)
    return folders


def _read(tree: Tree, listing: Listing, labels: Collection[str] | None = None) -> _Classes:
    """Read the folders of the labels (default: all)."""
    folders = _by_label(listing)
    omitted = [*listing.omitted, *(Omitted("beside", file) for file in listing.files)]
    photos: dict[str, list[Photo]] = {}
    lost = set()
    for label in folders.keys() if labels is None else labels:
        photos[label] = []
        for folder in folders[label]:
            below = tree.list_class(folder)
            omitted += below.omitted
            if any(omission.reason in LOSSES for omission in below.omitted):
                lost.add(label)
            photos[label] += (
                Photo(
                    name=_name(tree, path),
                    label=label,
                    read=tree.reader(path),
                    path=tree.file(path),
                )
                for path in below.files
            )
    names = {label: _names(tree, paths) for label, paths in folders.items()}
    return _Classes(
        folders=folders,
        split=Split(photos=photos, lost=lost, folders=names),
        omitted=omitted,
    )


def _split(tree: Tree, root: Path, top: _Classes) -> tuple[_Classes, dict[str, _Classes]]:
    """Return the training split and, by name, the splits to hold out; ``top`` if it has no splits.

    Folders are splits if they are named like splits and contain folders of the same classes. Raises
    InvalidInput if they are only named so.
    """
    folders = [folder for label in top.split.classes() for folder in top.folders[label]]
    roles = splits(folders)
    if not roles:
        return top, {}
    found = {folder: _read(tree, tree.list_folder(folder)) for folder in roles}
    train = [folder for folder in roles if roles[folder] == "train"]
    labels = set(found[train[0]].split.classes()) if train else set()
    if (
        len(train) != 1
        or len(roles) < len(folders)
        or any(labels.isdisjoint(other.split.classes()) for other in found.values())
    ):
        named = ", ".join(file_name(folder.name) for folder in roles)
        first = train[0] if train else next(iter(roles))
        raise InvalidInput(
            f"{file_name(root)} contains {named}, named like the splits of a data set, but they do "
            f"not contain the same class folders: pass {file_name(first)} to train on that alone, "
            "or name the folders as classes (--classes)",
            field="data",
            reason="SPLITS",
        )
    training = found.pop(train[0])
    outside = [omission for omission in top.omitted if omission.path.parent == root]
    held_out = {file_name(folder.name): other for folder, other in found.items()}
    return replace(training, omitted=[*outside, *training.omitted]), held_out


def _hint(tree: Tree, train: _Classes, labels: Sequence[str]) -> str:
    """Return a suggestion if there are too few classes."""
    if len(labels) == 1 and (folders := train.folders.get(labels[0])):
        folder = folders[0]
        if tree.list_folder(folder).folders:
            return f"; {file_name(folder)} contains folders: pass it if these are the classes"
    return ""


def _notes(train: _Classes, labels: Sequence[str]) -> Iterator[str]:
    for label in labels:
        if len(folders := train.folders.get(label, ())) > 1:
            names = " and ".join(ascii(folder.name) for folder in folders)
            yield f"The folders {names} are the same label, {label!r}, and one class"


def _names(tree: Tree, paths: Iterable[Path]) -> list[str]:
    return [_name(tree, path) for path in paths]


def _name(tree: Tree, path: Path) -> str:
    return file_name(path.relative_to(tree.root))
