"""Kinds of changes: the shards that each leaves, and what forbids it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from support import tiny

from topwork.bundle.manifest import Manifest, ShardRef
from topwork.changes.jobs import ChangeKind, Job, Upload
from topwork.changes.kinds import KINDS, changed_shards, check_change, describe
from topwork.errors import AlreadyExists, NotFound, NotReady, QuotaExceeded, Stale
from topwork.limits import DEFAULT_LIMITS

A, B, B2 = (
    ShardRef(label=label, digest=digit * 64)
    for label, digit in (("a", "1"), ("b", "2"), ("b", "3"))
)
NEW = "9" * 64


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Return the manifest of a model with four colours."""
    return tiny.repository(tmp_path_factory.mktemp("rules")).manifest("colours", 1)


def job(kind: ChangeKind, label: str = "", new_label: str = "", expected: int = 0) -> Job:
    """Return a job."""
    return Job(
        kind=kind,
        model="colours",
        label=label,
        new_label=new_label,
        expected_revision=expected,
        accepted=0.0,
    )


@pytest.mark.parametrize(
    ("kind", "label", "new", "after"),
    [
        ("add_class", "c", NEW, (A, B, B2, ShardRef(label="c", digest=NEW))),
        ("add_examples", "a", NEW, (A, B, B2, ShardRef(label="a", digest=NEW))),
        ("add_examples", "a", A.digest, (A, B, B2)),
        ("add_examples", "a", "", (A, B, B2)),
        ("remove_class", "b", "", (A,)),
        ("rename_class", "a", "", (ShardRef(label="z", digest=A.digest), B, B2)),
        ("retrain", "", "", (A, B, B2)),
    ],
)
def test_shards_after_a_change(
    kind: ChangeKind, label: str, new: str, after: tuple[ShardRef, ...]
) -> None:
    """A change adds, drops or relabels whole shards, and rewrites none."""
    assert changed_shards((A, B, B2), job(kind, label, "z"), new) == after


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        (job("add_class", "blue"), AlreadyExists, "has a label 'blue' already"),
        (job("rename_class", "blue", "green"), AlreadyExists, "has a label 'green' already"),
        (job("rename_class", "blue", "blue"), AlreadyExists, "has a label 'blue' already"),
        (job("add_examples", "violet"), NotFound, "has no label 'violet'"),
        (job("remove_class", "violet"), NotFound, "has no label 'violet'"),
        (job("rename_class", "violet", "blue"), NotFound, "has no label 'violet'"),
        (job("retrain", expected=2), Stale, "serves revision 1, not 2"),
    ],
)
def test_what_forbids_a_change(
    parent: Manifest, asked: Job, error: type[Exception], said: str
) -> None:
    """A change that does not fit the serving revision is refused, and told why."""
    with pytest.raises(error, match=said):
        check_change(asked, parent, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    "asked",
    [
        job("add_class", "violet"),
        job("add_examples", "blue"),
        job("remove_class", "blue"),
        job("rename_class", "blue", "violet"),
        job("retrain", expected=1),
    ],
)
def test_what_nothing_forbids(parent: Manifest, asked: Job) -> None:
    """A change that fits is let through."""
    check_change(asked, parent, DEFAULT_LIMITS)


def test_a_model_keeps_two_labels(parent: Manifest) -> None:
    """A label is not removed when fewer than two would remain."""
    two = replace(parent, labels=("blue", "green"))
    with pytest.raises(NotReady, match="has 2 labels; at least 2 must remain"):
        check_change(job("remove_class", "blue"), two, DEFAULT_LIMITS)


def test_a_model_has_room_for_so_many_labels(parent: Manifest) -> None:
    """A label more than the limit is refused; more images of one that is there are not."""
    full = replace(DEFAULT_LIMITS, max_labels=4)
    with pytest.raises(NotReady, match="has 4 labels; the limit is 4"):
        check_change(job("add_class", "violet"), parent, full)
    check_change(job("add_examples", "blue"), parent, full)


@pytest.mark.parametrize("kind", ["add_class", "add_examples"])
def test_a_model_has_only_so_many_images(parent: Manifest, kind: ChangeKind) -> None:
    """What would bring more images than a model may have is QuotaExceeded, with the numbers."""
    limits = replace(DEFAULT_LIMITS, max_images_per_model=82)
    uploads = tuple(Upload(name=str(number), digest=NEW) for number in range(3))
    asked = job(kind, "violet" if kind == "add_class" else "blue")
    check_change(replace(asked, uploads=uploads[:2]), parent, limits)
    with pytest.raises(QuotaExceeded, match="would have 83 images; the limit is 82") as caught:
        check_change(replace(asked, uploads=uploads), parent, limits)
    assert (caught.value.subject, caught.value.reason) == ("models/colours", "TOO_MANY_IMAGES")


def test_every_kind_of_change_has_its_row() -> None:
    """The table has the kinds that jobs may have, and no other."""
    assert set(KINDS) == set(get_args(ChangeKind))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (job("add_class", "violet"), "AddClass 'violet' (7 images)"),
        (job("add_examples", "blue"), "AddExamples 'blue' (7 images)"),
        (job("remove_class", "blue"), "RemoveClass 'blue'"),
        (job("rename_class", "blue", "navy"), "RenameClass 'blue' to 'navy'"),
        (job("retrain"), "Retrain"),
    ],
)
def test_report_says_what_was_asked(asked: Job, said: str) -> None:
    """A change is described by its rpc, and by the labels and images that it is about."""
    assert describe(asked, 7) == said
