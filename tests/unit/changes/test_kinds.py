"""Kinds of changes: the shards after each, and its checks."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from support import tiny

from topwork.bundle.manifest import Manifest, ShardRef
from topwork.changes.jobs import ChangeKind, Job, Upload
from topwork.changes.kinds import (
    KINDS,
    changed_shards,
    check_change,
    describe,
    new_labels,
    taught_labels,
)
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
def test_changed_shards_of_each_kind(
    kind: ChangeKind, label: str, new: str, after: tuple[ShardRef, ...]
) -> None:
    """A change adds, removes or relabels whole shards."""
    shards = {label: new} if new else {}
    assert changed_shards((A, B, B2), job(kind, label, "z"), shards) == after


def test_add_classes_adds_the_shards_of_all_its_labels() -> None:
    """A label whose images are all known adds none."""
    change = replace(job("add_classes"), labels=("a", "c", "d"))
    after = changed_shards((A, B), change, {"d": "8" * 64, "c": NEW})
    assert after == (A, B, ShardRef(label="c", digest=NEW), ShardRef(label="d", digest="8" * 64))


def test_new_labels_are_those_that_the_parent_lacks(parent: Manifest) -> None:
    """An existing label of AddClasses only gets more images."""
    change = replace(job("add_classes"), labels=("blue", "violet"))
    assert (taught_labels(change), new_labels(change, parent)) == (("blue", "violet"), ("violet",))
    assert taught_labels(job("move_examples", "violet")) == ("violet",)
    assert new_labels(job("move_examples", "violet"), parent) == ()
    assert taught_labels(job("rename_class", "blue", "navy")) == ()


def test_add_classes_counts_only_new_labels_against_the_limit(parent: Manifest) -> None:
    """The NotReady has the number of new labels."""
    limits = replace(DEFAULT_LIMITS, max_labels=5)
    change = replace(job("add_classes"), labels=("blue", "green", "violet"))
    check_change(change, parent, limits)
    with pytest.raises(NotReady, match="has 4 labels, and 2 are new; the limit is 5") as caught:
        check_change(replace(change, labels=("blue", "teal", "violet")), parent, limits)
    assert caught.value.reason == "TOO_MANY_LABELS"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "message"),
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
def test_check_change_refuses_what_the_parent_does_not_allow(
    parent: Manifest, change: Job, error: type[Exception], message: str
) -> None:
    """The error has the label or the revision."""
    with pytest.raises(error, match=message):
        check_change(change, parent, DEFAULT_LIMITS)


@pytest.mark.parametrize(
    "change",
    [
        job("add_class", "violet"),
        job("add_examples", "blue"),
        job("remove_class", "blue"),
        job("rename_class", "blue", "violet"),
        job("retrain", expected=1),
    ],
)
def test_check_change_allows_valid_changes(parent: Manifest, change: Job) -> None:
    """A valid change of each kind raises no error."""
    check_change(change, parent, DEFAULT_LIMITS)


def test_remove_class_of_two_labels_is_not_ready(parent: Manifest) -> None:
    """A model keeps at least two labels."""
    two = replace(parent, labels=("blue", "green"))
    with pytest.raises(NotReady, match="has 2 labels; at least 2 must remain"):
        check_change(job("remove_class", "blue"), two, DEFAULT_LIMITS)


def test_add_class_at_the_limit_of_labels_is_not_ready(parent: Manifest) -> None:
    """More images of an existing label are accepted."""
    full = replace(DEFAULT_LIMITS, max_labels=4)
    with pytest.raises(NotReady, match="has 4 labels; the limit is 4"):
        check_change(job("add_class", "violet"), parent, full)
    check_change(job("add_examples", "blue"), parent, full)


@pytest.mark.parametrize("kind", ["add_class", "add_examples"])
def test_upload_above_the_limit_of_images_exceeds_the_quota(
    parent: Manifest, kind: ChangeKind
) -> None:
    """The QuotaExceeded has the numbers."""
    limits = replace(DEFAULT_LIMITS, max_images_per_model=82)
    uploads = tuple(Upload(name=str(number), digest=NEW) for number in range(3))
    change = job(kind, "violet" if kind == "add_class" else "blue")
    check_change(replace(change, uploads=uploads[:2]), parent, limits)
    with pytest.raises(QuotaExceeded, match="would have 83 images; the limit is 82") as caught:
        check_change(replace(change, uploads=uploads), parent, limits)
    assert (caught.value.subject, caught.value.reason) == ("models/colours", "TOO_MANY_IMAGES")


def test_table_has_exactly_the_kinds_of_jobs() -> None:
    """Each kind has its properties."""
    assert set(KINDS) == set(get_args(ChangeKind))


@pytest.mark.parametrize(
    ("change", "description"),
    [
        (job("add_class", "violet"), "AddClass 'violet' (7 images)"),
        (job("add_examples", "blue"), "AddExamples 'blue' (7 images)"),
        (job("remove_class", "blue"), "RemoveClass 'blue'"),
        (job("rename_class", "blue", "navy"), "RenameClass 'blue' to 'navy'"),
        (job("retrain"), "Retrain"),
        (
            replace(job("add_classes"), labels=tuple("abcdefg")),
            "AddClasses 'a', 'b', 'c', 'd', 'e' and 2 more (7 images)",
        ),
    ],
)
def test_describe_names_rpc_labels_and_images(change: Job, description: str) -> None:
    """Only uploads have a number of images."""
    assert describe(change, 7) == description
