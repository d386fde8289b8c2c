"""RemoveExamples and MoveExamples: the shards after each, their receipts and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.pictures import pictures

from topwork.bundle.comparison import Gate
from topwork.bundle.examples import index_of_shards, rows_with
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.changes import retrain
from topwork.changes.examples import check_examples
from topwork.changes.jobs import ChangedExample, ChangeKind, ChangeResult, Conflict, Job, Upload
from topwork.changes.kinds import describe
from topwork.changes.retrain import Trainer
from topwork.errors import AlreadyExists, NotFound, NotReady, TopworkError
from topwork.inputs.image import pixel_digest, preprocess
from topwork.learning.learn import Learned, learn
from topwork.limits import DEFAULT_LIMITS

LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
A, B = pictures("amber", 6), pictures("blue", 6)
NOBODY = "f" * 64


def digest(content: bytes) -> str:
    """Return the image digest of a picture."""
    return pixel_digest(preprocess(content, tiny.SPEC))


@tiny.copied
def two_labels(root: Path) -> Repository:
    """Return a repository with a model ``m`` of six images of a and of b; one of a is of b, too."""
    made = Repository(root)
    tiny.publish(made, "m", tiny.embed_pictures({"a": A, "b": [*B, A[5]]}))
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository of ``two_labels``."""
    return two_labels(tmp_path)


def job(kind: ChangeKind, *digests: str, label: str = "", gate: Gate = ANY) -> Job:
    """Return a job about examples."""
    return Job(
        kind=kind, model="m", accepted=5.0, label=label, gate=gate, digests=tuple(sorted(digests))
    )


def ignore(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
    """Ignore progress."""


def apply(repository: Repository, change: Job, operation: str = "x") -> ChangeResult:
    """Run all steps of a job and return its result."""
    trainer = Trainer(repository, cores=1, limits=LIMITS)
    candidate = trainer.solve(change, trainer.embed(change, ignore), operation)
    assert candidate.published
    if candidate.rejected is None:
        trainer.serve(change, candidate.result.revision, operation)
    return candidate.result


def pairs(repository: Repository) -> set[tuple[str, str]]:
    """Return the image digests of the serving revision with their labels."""
    exemplars = repository.exemplars(serving(repository).exemplars)
    return {
        (row.tobytes().hex(), exemplars.labels[target])
        for row, target in zip(exemplars.digests, exemplars.targets, strict=True)
    }


def serving(repository: Repository) -> Manifest:
    """Return the manifest of the serving revision."""
    return repository.manifest("m", repository.serving("m"))


def test_remove_examples_leaves_the_others(repository: Repository) -> None:
    """The receipt has the old and the new revision, and each example with the labels it lost."""
    before = pairs(repository)
    result = apply(repository, job("remove_examples", digest(A[0]), digest(A[5])))
    assert (result.parent, result.revision) == (1, 2)
    assert result.examples == tuple(
        ChangedExample(digest=found, labels=labels)
        for found, labels in sorted([(digest(A[0]), ("a",)), (digest(A[5]), ("a", "b"))])
    )
    removed = {(digest(A[0]), "a"), (digest(A[5]), "a"), (digest(A[5]), "b")}
    assert pairs(repository) == before - removed


def test_remove_examples_of_a_label_leaves_the_other_label(repository: Repository) -> None:
    """With a label, an image that has two labels keeps the other one."""
    before = pairs(repository)
    result = apply(repository, job("remove_examples", digest(A[5]), label="b"))
    assert result.examples == (ChangedExample(digest=digest(A[5]), labels=("b",)),)
    assert pairs(repository) == before - {(digest(A[5]), "b")}


def test_move_examples_gives_exactly_the_new_label(repository: Repository) -> None:
    """An image that had both labels has only the new one, once."""
    before = pairs(repository)
    result = apply(repository, job("move_examples", digest(A[1]), digest(A[5]), label="b"))
    assert {example.labels for example in result.examples} == {("a",)}
    removed = {(digest(A[1]), "a"), (digest(A[5]), "a")}
    assert pairs(repository) == before - removed | {(digest(A[1]), "b")}
    assert serving(repository).images == 12


def test_move_examples_to_a_new_label(repository: Repository) -> None:
    """The new label needs the minimum of images, as in AddClass."""
    with pytest.raises(NotReady, match="'c' would have 2 images; at least 3 are needed") as caught:
        apply(repository, job("move_examples", digest(A[0]), digest(B[0]), label="c"))
    assert caught.value.reason == "TOO_FEW_IMAGES"
    moved = [digest(A[0]), digest(B[0]), digest(B[1])]
    apply(repository, job("move_examples", *moved, label="c"))
    assert serving(repository).labels == ("a", "b", "c")
    assert {(found, "c") for found in moved} <= pairs(repository)


def test_a_label_goes_with_its_last_example(repository: Repository) -> None:
    """Moving all examples of a label to a new one renames it."""
    before = pairs(repository)
    apply(repository, job("move_examples", *map(digest, B), digest(A[5]), label="z"))
    assert serving(repository).labels == ("a", "z")
    assert pairs(repository) == {
        (found, "z" if label == "b" or found == digest(A[5]) else label) for found, label in before
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (job("remove_examples", NOBODY), NotFound, f"'m' has no example {NOBODY}$"),
        (job("remove_examples", digest(A[0]), NOBODY), NotFound, f"no example {NOBODY}$"),
        (job("remove_examples", NOBODY, "e" * 64), NotFound, r"eee \(and 1 more\)"),
        (
            job("remove_examples", digest(A[0]), label="b"),
            NotFound,
            f"no example {digest(A[0])} with the label 'b'",
        ),
        (job("remove_examples", digest(A[0]), label="c"), NotFound, "has no label 'c'"),
        (job("move_examples", NOBODY, label="b"), NotFound, f"no example {NOBODY}$"),
        (
            job("move_examples", digest(A[0]), digest(B[0]), label="b"),
            AlreadyExists,
            f"example {digest(B[0])} of model 'm' has the label 'b' already$",
        ),
        (
            job("remove_examples", *map(digest, A[:4])),
            NotReady,
            "'a' would have 2 images; at least 3 are needed, or none",
        ),
        (job("remove_examples", *map(digest, A), label="a"), NotReady, "1 labels would remain"),
        (job("move_examples", *map(digest, A), label="b"), NotReady, "1 labels would remain"),
    ],
)
def test_refused_changes_of_examples_change_nothing(
    repository: Repository, change: Job, error: type[TopworkError], message: str
) -> None:
    """The error has the digest, or the label with the numbers; no file is written."""
    files = sorted(repository.root.rglob("*.npz"))
    with pytest.raises(error, match=message):
        apply(repository, change)
    assert repository.serving("m") == 1
    assert sorted(repository.root.rglob("*.npz")) == files


def test_a_label_below_the_minimum_may_shrink(repository: Repository) -> None:
    """Otherwise a wrong example of a small label could not be removed."""
    apply(repository, job("remove_examples", *map(digest, A[:3])))
    few = replace(LIMITS, min_images_per_label=5)
    stored = index_of_shards(repository.shards(serving(repository).exemplars))
    check_examples(job("remove_examples", digest(A[3])), stored, few)
    with pytest.raises(NotReady, match="'b' would have 4 images"):
        check_examples(job("remove_examples", *map(digest, B[:3])), stored, few)


def test_too_many_labels_are_refused(repository: Repository) -> None:
    """A move to a new label obeys the limit of labels."""
    full = replace(LIMITS, max_labels=2)
    stored = index_of_shards(repository.shards(serving(repository).exemplars))
    change = job("move_examples", *map(digest, A[:3]), label="c")
    with pytest.raises(NotReady, match="has 2 labels; the limit is 2"):
        check_examples(change, stored, full)


def test_moved_and_remaining_examples_keep_their_origin(repository: Repository) -> None:
    """A rewritten shard and a moved one have the operation and time of the original."""
    added = Job(
        kind="add_examples",
        model="m",
        accepted=7.0,
        label="a",
        gate=ANY,
        uploads=tuple(
            Upload(name=f"{number}.png", digest=repository.put_image(content))
            for number, content in enumerate(pictures("crimson", 3))
        ),
    )
    apply(repository, added, "upload")
    moved = digest(pictures("crimson", 3)[0])
    apply(repository, job("move_examples", moved, digest(A[0]), label="b"), "move")
    origins = {
        (ref.label, ref.operation, None if ref.added is None else ref.added.timestamp())
        for ref in serving(repository).exemplars
        if ref.operation
    }
    assert origins == {("a", "upload", 7.0), ("b", "upload", 7.0)}
    assert all(ref.added is not None for ref in serving(repository).exemplars)


def test_gate_rejects_a_move_that_harms(repository: Repository) -> None:
    """The new label of a move must reach the recall of a new class."""
    mixed = [*A[:3], *B[:3]]
    result = apply(repository, job("move_examples", *map(digest, mixed), label="c", gate=Gate()))
    manifest = repository.manifest("m", result.revision)
    assert manifest.rejection is not None
    assert manifest.comparison is not None
    assert manifest.comparison.taught is not None
    assert manifest.comparison.taught.label == "c"
    assert repository.serving("m") == 1


def test_solving_again_after_a_crash_publishes_once(repository: Repository) -> None:
    """The steps are idempotent, because shards are named by their content."""
    change = job("remove_examples", digest(A[0]))
    trainer = Trainer(repository, cores=1, limits=LIMITS)
    first, again = (trainer.solve(change, trainer.embed(change, ignore), "x") for _ in range(2))
    assert first == again
    assert repository.revisions("m") == [1, 2]


def test_shards_that_gc_deletes_while_solving_are_stored_again(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No revision refers to them yet, and with --spare-hours 0 gc spares no young file."""
    deleted: list[str] = []

    def collect_and_learn(*arguments: Any, **options: Any) -> Learned:
        found = collect(repository, spare_seconds=-1)
        deleted.extend(removed.kind for removed in found.removed)
        return learn(*arguments, **options)

    monkeypatch.setattr(retrain, "learn", collect_and_learn)
    apply(repository, job("move_examples", digest(A[0]), label="b"))
    assert deleted == ["shard", "shard"]
    assert [problem for problem in check(repository) if problem.severity == "error"] == []


def test_index_has_the_place_of_each_example(repository: Repository) -> None:
    """The shard and row of the index lead to the example, after changes too."""
    apply(repository, job("move_examples", digest(A[0]), digest(A[5]), label="b"))
    manifest = serving(repository)
    index, exemplars = repository.examples(manifest), repository.exemplars(manifest.exemplars)
    np.testing.assert_array_equal(index.digests, exemplars.digests)
    np.testing.assert_array_equal(index.targets, exemplars.targets)
    for row in range(len(index)):
        ref = manifest.exemplars[index.parts[row]]
        shard = repository.shard(ref.digest)
        assert ref.label == index.labels[index.targets[row]]
        np.testing.assert_array_equal(shard.digests[index.rows[row]], index.digests[row])
        assert index.name(row) == shard.names[index.rows[row]] == exemplars.names[row]


def test_description_has_the_number_of_examples() -> None:
    """Digests of removed images are not in the report."""
    assert describe(job("remove_examples", NOBODY), 0) == "RemoveExamples (1 images)"
    assert describe(job("move_examples", NOBODY, label="b"), 0) == "MoveExamples 'b' (1 images)"


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True), st.data())
def test_rows_with_finds_exactly_the_wanted(digests: list[bytes], data: st.DataObject) -> None:
    """Also digests that end with zeros, which some comparisons of NumPy drop."""
    wanted = data.draw(st.lists(st.sampled_from(digests), unique=True)) if digests else []
    rows = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
    found = rows_with(rows, [one.hex() for one in wanted])
    assert found.tolist() == [one in wanted for one in digests]
