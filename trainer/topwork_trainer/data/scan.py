"""Scan of training data: recognises its layout, reads it, selects labels and checks counts."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from topwork.bundle.names import check_label
from topwork.errors import InvalidInput
from topwork.inputs.data.layouts import find_kind, read
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.data.tables import list_columns
from topwork.inputs.data.test_set import read_test_set
from topwork.inputs.folders import by_reason
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.printable import file_name, printable
from topwork_trainer.data.photos import Photos, check_counts
from topwork_trainer.kinds import NOUNS


def scan(
    data: Path,
    *,
    classes: Sequence[str] | None = None,
    kind: str = "",
    limits: InputLimits = DEFAULT_LIMITS,
) -> Photos:
    """Return the labelled photos or texts of ``data``, in any layout of docs/training.md.

    ``classes`` names the labels to use, in any Unicode form; default: all that have photos.
    ``kind`` is ``image`` or ``text``; empty: found by the files.

    Raises InvalidInput if ``data`` has no known layout, if a class is missing, has an invalid name
    or too few files, if there are fewer than two classes, or if all photos of a class belong to the
    same group, so that no head could be evaluated on them.
    """
    wanted = None if classes is None else {unicodedata.normalize("NFC", name) for name in classes}
    kind, found = (kind, read(data, wanted, kind)) if kind else find_kind(data, wanted)
    if not found.train.photos and found.held_out:
        present = ", ".join(found.held_out)
        raise InvalidInput(
            f"{file_name(data)} has no labelled photo to train on and the splits {present}",
            field="data",
        )
    labels = tuple(sorted(found.train.classes() if wanted is None else wanted))
    every_split = (found.train, *found.held_out.values())
    omitted = list(found.omitted)
    for other in found.held_out.values():
        omitted += other.omit("untrained", set(other.classes()) - set(labels))
    for split in every_split:
        omitted += split.omit("empty", split.photos.keys() - {*split.classes(), *labels})
    left_out = by_reason(omitted)
    more = f"; left out: {', '.join(map(str, left_out))}" if left_out else ""
    _check_labels(data, labels, found, limits, kind=kind, more=more)
    train = found.train.photos_of(labels)
    check_counts(Counter(photo.label for photo in train), labels, limits=limits, more=more)
    _check_groups(train)
    held_out = {name: other.photos_of(labels) for name, other in found.held_out.items()}
    return Photos(
        kind=kind,
        labels=labels,
        train=train,
        held_out=held_out,
        left_out=left_out,
        notes=(*_unused(found), *found.notes, *_notes(train, held_out, kind)),
    )


def add_test_set(photos: Photos, data: Path) -> Photos:
    """Return ``photos`` with the photos of a test set as one more held-out split, named like it.

    Photos of labels that are not trained are left out. Of data with splits, the test splits are
    used. Raises InvalidInput if ``data`` has no known layout, has splits but no test split, or has
    no photo of a trained label.
    """
    found = read_test_set(data, photos.kind)
    omitted = list(found.omitted)
    for split in found.splits:
        omitted += split.omit("untrained", set(split.classes()) - set(photos.labels))
    tested = found.photos_of(photos.labels)
    if not tested:
        raise InvalidInput(
            f"{file_name(data)} has no {NOUNS[photos.kind]} of a trained class; its classes are "
            f"{_few(found.labels())}",
            field="test",
        )
    name = file_name(data.name)
    if name in photos.held_out:
        name = file_name(data)
    before = [(group.reason, each) for group in photos.left_out for each in group.names]
    return replace(
        photos,
        held_out={**photos.held_out, name: tested},
        left_out=by_reason([*before, *((reason, f"{name}/{each}") for reason, each in omitted)]),
        notes=(*photos.notes, *found.notes, *_held_out({name: tested}, photos.kind)),
    )


def _check_labels(
    data: Path,
    labels: Sequence[str],
    found: Found,
    limits: InputLimits,
    *,
    kind: str,
    more: str,
) -> None:
    train = found.train
    for label in labels:
        if train.folders and label not in train.folders:
            raise InvalidInput(
                f"{file_name(data)} has no folder for class {label!r}; its folders are "
                f"{_few(list(train.folders))}",
                field="classes",
            )
        if label not in train.photos and not train.folders and train.photos:
            raise InvalidInput(
                f"{file_name(data)} has no {NOUNS[kind]} of class {label!r}; its classes are "
                f"{_few(sorted(train.photos))}",
                field="classes",
            )
        check_label(label, limits=limits)
    if not 2 <= len(labels) <= limits.max_labels:
        needed = "" if _has_labels(train) else f", one folder of {NOUNS[kind]}s each"
        raise InvalidInput(
            f"{file_name(data)} has {len(labels)} classes ({_few(labels)}); 2 to "
            f"{limits.max_labels} are needed{needed}{found.hint}{more}",
            field="data",
        )


def _has_labels(split: Split) -> bool:
    """Return True if labels do not come from folders."""
    return not split.folders and bool(split.photos)


def _check_groups(train: Sequence[Photo]) -> None:
    """Raise InvalidInput if all photos of a label belong to one group."""
    groups: Mapping[str, set[str]] = defaultdict(set)
    for photo in train:
        groups[photo.label].add(photo.group or f"\0{photo.name}")  # alone, if it has no group
    for label, members in groups.items():
        group = next(iter(members))
        if len(members) == 1 and not group.startswith("\0"):
            raise InvalidInput(
                f"all photos of class {label!r} belong to the group {group!r}: a group is never "
                "split between training and evaluation, so no head could be evaluated on this "
                "class; add photos of another group, or leave out the column of groups",
                field="data",
            )


def _unused(found: Found) -> Iterator[str]:
    for name, columns in found.columns.items():
        if columns:
            yield printable(f"Columns of {name} that are not used: {list_columns(columns)}")


def _notes(
    train: Sequence[Photo], held_out: Mapping[str, Collection[Photo]], kind: str
) -> Iterator[str]:
    if groups := {photo.group for photo in train} - {""}:
        alone = sum(not photo.group for photo in train)
        more = f"; {alone:,} {NOUNS[kind]}s have no group" if alone else ""
        yield f"Folds keep groups together ({len(groups):,} groups{more})"
    yield from _held_out(held_out, kind)


def _held_out(held_out: Mapping[str, Collection[Photo]], kind: str) -> Iterator[str]:
    if held_out:
        noun = f"{NOUNS[kind]}s"
        counts = ", ".join(f"{split} ({len(photos)} {noun})" for split, photos in held_out.items())
        yield f"Held out and not trained on: {counts}"


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(file_name, names[:10])) or "none"
    return f"{shown}, ..." if len(names) > 10 else shown
