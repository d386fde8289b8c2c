"""Reader of a test set: labelled photos in any layout of training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.inputs.data.layouts import read
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.folders import Reason
from topwork.inputs.splits import split_role
from topwork.printable import file_name


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """Labelled photos and the files that are left out."""

    __test__ = False  # no class of tests, whatever its name says to pytest

    splits: Sequence[Split]
    omitted: Sequence[tuple[Reason, str]]
    notes: Sequence[str]
    """Decisions about the data, a sentence each."""

    def labels(self) -> list[str]:
        """Return the labels with photos, sorted."""
        return sorted({label for split in self.splits for label in split.classes()})

    def photos_of(self, labels: Sequence[str]) -> tuple[Photo, ...]:
        """Return the photos of the labels."""
        return tuple(photo for split in self.splits for photo in split.photos_of(labels))


def read_test_set(data: Path, kind: str = "image") -> TestSet:
    """Return the test split of data with splits, else all photos, or inputs of the kind, of it.

    Raises InvalidInput if the layout is unknown, or there are splits but no test split.
    """
    return held_out(read(data, None, kind), data)


def held_out(found: Found, data: Path) -> TestSet:
    """Return the test set of what a reader found in ``data``. Raises as ``read_test_set``."""
    splits, notes = [found.train], list(found.notes)
    if found.held_out:
        tests = [split for split in found.held_out if split_role(split) == "test"]
        if not tests:
            named = ["train"] * bool(found.train.photos) + list(found.held_out)
            raise InvalidInput(
                f"{file_name(data)} has the splits {', '.join(named)} and no test split: pass the "
                "split that is the test set",
                field="test",
            )
        splits = [found.held_out[test] for test in tests]
        notes.append(f"Of {file_name(data.name)} the split {' and '.join(tests)} is used")
    empty = [
        omitted
        for split in splits
        for omitted in split.omit("empty", split.photos.keys() - split.classes())
    ]
    return TestSet(splits=splits, omitted=[*found.omitted, *empty], notes=notes)
