"""Training photos and held-out splits, read from folders with one folder per class."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from topwork.bundle.names import check_label
from topwork.errors import InvalidInput
from topwork.inputs.folders import (
    LOSSES,
    LeftOut,
    Listing,
    Omitted,
    Reason,
    group,
    list_folder,
    list_photos,
    read_photo,
    splits,
)
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.printable import file_name
from topwork.training.embed import ImageSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo(ImageSource):
    """A training image in a file; its name is the escaped path below the data folder."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """Photos to train on, held-out photos, and files that are left out."""

    labels: tuple[str, ...]
    """Sorted."""
    train: tuple[Photo, ...]
    """Sorted by label, then by path."""
    held_out: Mapping[str, tuple[Photo, ...]]
    """Photos to test on, by the name of their split; empty if the data has no splits."""
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    """Decisions about folders, a sentence each."""


def scan(
    data: Path, *, classes: Sequence[str] | None = None, limits: InputLimits = DEFAULT_LIMITS
) -> Photos:
    """Return the photos below each folder of ``data``, labelled with the folder's name.

    ``topwork.inputs.folders`` decides which files are photos. ``classes`` names the folders to use,
    in any Unicode form; default: all that have photos. Folders with the same name in composed form
    (NFC) are one class. If ``data`` contains train and val or test, each with one folder per class,
    the first is the training set and the others are held out.

    Raises InvalidInput if ``data`` is not a folder, if a class is missing, has an invalid name or
    too few files, if there are fewer than two classes, or if folders may be splits as well as
    classes; folders that ``classes`` names are classes.
    """
    if not data.is_dir():
        raise InvalidInput(f"{file_name(data)} is not a folder", field="data")
    wanted = None if classes is None else {unicodedata.normalize("NFC", name) for name in classes}
    top = list_folder(data)
    if wanted is not None and wanted <= _by_label(top).keys():
        tree, others = _read(top, data, wanted), dict[str, _Tree]()
    else:
        tree, others = _split(data, _read(top, data))
    labels = tuple(sorted(tree.classes() if wanted is None else wanted))
    every_split = (tree, *others.values())
    omitted = [omitted for split in every_split for omitted in split.omitted]
    for other in others.values():
        omitted += other.omit_folders("untrained", set(other.classes()) - set(labels))
    for split in every_split:
        omitted += split.omit_folders("empty", split.photos.keys() - {*split.classes(), *labels})
    left_out = group(omitted, data)
    more = f"; left out: {', '.join(map(str, left_out))}" if left_out else ""
    _check_labels(data, labels, tree, limits, more)
    train = tree.photos_of(labels)
    check_counts(Counter(photo.label for photo in train), labels, limits=limits, more=more)
    held_out = {name: other.photos_of(labels) for name, other in others.items()}
    return Photos(
        labels=labels,
        train=train,
        held_out=held_out,
        left_out=left_out,
        notes=tuple(_notes(tree, labels, held_out)),
    )


def check_counts(
    counts: Counter[str],
    labels: Sequence[str],
    *,
    kind: str = "files",
    limits: InputLimits,
    more: str = "",
) -> None:
    """Raise InvalidInput if a label has too few; ``kind`` names the counted things."""
    few = [label for label in labels if counts[label] < limits.min_images_per_label]
    if few:
        named = ", ".join(f"{label!r} has {counts[label]}" for label in few[:5])
        raise InvalidInput(
            f"at least {limits.min_images_per_label} {kind} per class are needed: {named}{more}",
            field="data",
            reason="TOO_FEW_IMAGES",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    """A folder that contains one folder per class."""

    folders: Mapping[str, Sequence[Path]]
    """By label; a label has several folders if their names differ only in Unicode form."""
    photos: Mapping[str, Sequence[Photo]]
    """By label, for the folders that were read."""
    omitted: Sequence[Omitted]
    lost: Collection[str]
    """Labels whose folders contain dead links or unreadable files."""

    def classes(self) -> list[str]:
        """Return the labels that have photos, or may have lost them to dead links."""
        return [label for label, photos in self.photos.items() if photos or label in self.lost]

    def photos_of(self, labels: Sequence[str]) -> tuple[Photo, ...]:
        """Return the photos of the labels."""
        return tuple(photo for label in labels for photo in self.photos.get(label, ()))

    def omit_folders(self, reason: Reason, labels: Collection[str]) -> list[Omitted]:
        """Return the folders of the labels as left out for a reason."""
        return [Omitted(reason, folder) for label in labels for folder in self.folders[label]]


def _by_label(listing: Listing) -> dict[str, list[Path]]:
    """Return the folders of a listing by label, the folder's name in composed form (NFC)."""
    folders: dict[str, list[Path]] = defaultdict(list)
    for folder in listing.folders:
        folders[unicodedata.normalize("NFC", folder.name)].append(folder)
    return folders


def _read(listing: Listing, data: Path, labels: Collection[str] | None = None) -> _Tree:
    """Read the folders of the labels (default: all); names of photos are relative to ``data``."""
    folders = _by_label(listing)
    omitted = [*listing.omitted, *(Omitted("beside", file) for file in listing.files)]
    photos: dict[str, list[Photo]] = {}
    lost = set()
    for label in folders.keys() if labels is None else labels:
        photos[label] = []
        for folder in folders[label]:
            below = list_photos(folder, one_class=True)
            omitted += below.omitted
            if any(omission.reason in LOSSES for omission in below.omitted):
                lost.add(label)
            photos[label] += (
                Photo(
                    name=file_name(path.relative_to(data)),
                    label=label,
                    read=partial(read_photo, path, most_bytes=DEFAULT_LIMITS.max_image_bytes),
                    path=path,
                )
                for path in below.files
            )
    return _Tree(folders=folders, photos=photos, omitted=omitted, lost=lost)


def _split(data: Path, top: _Tree) -> tuple[_Tree, dict[str, _Tree]]:
    """Return the training split and, by name, the splits to hold out; ``top`` if it has no splits.

    Folders are splits if they are named like splits and contain folders of the same classes. Raises
    InvalidInput if they are only named so.
    """
    folders = [folder for label in top.classes() for folder in top.folders[label]]
    roles = splits(folders)
    if not roles:
        return top, {}
    trees = {folder: _read(list_folder(folder), data) for folder in roles}
    train = [folder for folder in roles if roles[folder] == "train"]
    labels = set(trees[train[0]].classes()) if train else set()
    if (
        len(train) != 1
        or len(roles) < len(folders)
        or any(labels.isdisjoint(tree.classes()) for tree in trees.values())
    ):
        named = ", ".join(file_name(folder.name) for folder in roles)
        first = train[0] if train else next(iter(roles))
        raise InvalidInput(
            f"{file_name(data)} contains {named}, named like the splits of a data set, but they do "
            f"not contain the same class folders: pass {file_name(first)} to train on that alone, "
            "or name the folders as classes (--classes)",
            field="data",
            reason="SPLITS",
        )
    training = trees.pop(train[0])
    outside = [omission for omission in top.omitted if omission.path.parent == data]
    held_out = {file_name(folder.name): tree for folder, tree in trees.items()}
    return replace(training, omitted=[*outside, *training.omitted]), held_out


def _check_labels(
    data: Path, labels: Sequence[str], tree: _Tree, limits: InputLimits, more: str
) -> None:
    for label in labels:
        if label not in tree.folders:
            raise InvalidInput(
                f"{file_name(data)} has no folder for class {label!r}; its folders are "
                f"{_few(list(tree.folders))}",
                field="classes",
            )
        check_label(label, limits=limits)
    if not 2 <= len(labels) <= limits.max_labels:
        raise InvalidInput(
            f"{file_name(data)} has {len(labels)} classes ({_few(labels)}); 2 to "
            f"{limits.max_labels} are needed, one folder of photos each{_hint(labels, tree)}{more}",
            field="data",
        )


def _hint(labels: Sequence[str], tree: _Tree) -> str:
    """Return a suggestion if there are too few classes."""
    if len(labels) == 1 and list_folder(folder := tree.folders[labels[0]][0]).folders:
        return f"; {file_name(folder)} contains folders: pass it if these are the classes"
    return ""


def _notes(
    tree: _Tree, labels: Sequence[str], held_out: Mapping[str, Sequence[Photo]]
) -> Iterator[str]:
    for label in labels:
        if len(tree.folders[label]) > 1:
            names = " and ".join(ascii(folder.name) for folder in tree.folders[label])
            yield f"The folders {names} are the same label, {label!r}, and one class"
    if held_out:
        counts = ", ".join(f"{split} ({len(photos)} photos)" for split, photos in held_out.items())
        yield f"Held out and not trained on: {counts}"


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(file_name, names[:10])) or "none"
    return f"{shown}, ..." if len(names) > 10 else shown
