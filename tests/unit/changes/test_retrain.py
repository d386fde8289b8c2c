"""Steps of a change: a changed model equals a fit on the same images, byte for byte."""

from __future__ import annotations

import functools
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle import embedding_rows
from topwork.bundle.comparison import Gate
from topwork.bundle.documents import from_data
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.manifest import Manifest
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind, ChangeResult, Conflict, Job, Upload
from topwork.changes.new_exemplars import NewExemplars
from topwork.changes.retrain import OVERTAKEN, Candidate, Trainer
from topwork.errors import Corrupt, NotReady, Stale
from topwork.inputs.image import pixel_digest, preprocess
from topwork.learning import gate as gate_module
from topwork.learning import streamed
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.backend import open_session
from topwork.storage.files import sha256

ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
POOL = {
    label: pictures(colour, 14)
    for label, colour in zip("abcde", ("amber", "blue", "crimson", "green", "violet"), strict=True)
}
"""Images of each label that a history may add."""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with a model ``m`` of the labels a and b."""
    return fitted_repository(tmp_path)


@tiny.copied
def fitted_repository(root: Path, first: int = 8) -> Repository:
    """Return a repository with a model ``m`` fitted on the ``first`` images of a and b."""
    made = Repository(root)
    tiny.publish(made, "m", tiny.embed_pictures({label: POOL[label][:first] for label in "ab"}))
    return made


def job(
    repository: Repository,
    kind: ChangeKind,
    label: str = "",
    contents: Sequence[bytes] = (),
    *,
    classes: dict[str, list[bytes]] | None = None,
    new_label: str = "",
    gate: Gate = ANY,
    recipe: Recipe | None = None,
    expected: int = 0,
    validate_only: bool = False,
    digests: Sequence[str] = (),
) -> Job:
    """Return a job, and store its images."""
    return Job(
        kind=kind,
        model="m",
        label=label,
        new_label=new_label,
        accepted=0.0,
        labels=tuple(sorted(classes or ())),
        uploads=tuple(
            Upload(name=f"{label or own}-{number}", digest=repository.put_image(content), label=own)
            for own, images in (classes or {"": [*contents]}).items()
            for number, content in enumerate(images)
        ),
        gate=gate,
        recipe=recipe,
        expected_revision=expected,
        validate_only=validate_only,
        digests=tuple(sorted(set(digests))),
    )


@functools.cache
def digest_of(content: bytes) -> str:
    """Return the image digest of a picture."""
    return pixel_digest(preprocess(content, tiny.SPEC))


def ignore(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
    """Ignore progress."""


def apply(repository: Repository, change: Job) -> ChangeResult:
    """Run all steps of a job and return its result."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    operation = str(uuid.uuid4())
    candidate = trainer.solve(change, trainer.embed(change, ignore), operation)
    assert candidate.rejected is None
    if candidate.published:
        trainer.serve(change, candidate.result.revision, operation)
    return candidate.result


def serving(repository: Repository) -> Manifest:
    """Return the manifest of the serving revision."""
    return repository.manifest("m", repository.serving("m"))


def fit(
    images: dict[str, list[bytes]], recipe: Recipe = tiny.LOGISTIC
) -> tuple[tuple[str, ...], bytes, str]:
    """Return labels, head and data digest of one fit on ``images``."""
    with TemporaryDirectory() as directory:
        made = Repository(Path(directory))
        manifest = tiny.publish(made, "m", tiny.embed_pictures(images), recipe=recipe)
        return manifest.labels, made.head(manifest), manifest.data_digest


def test_report_of_a_change_equals_that_of_a_fit(repository: Repository) -> None:
    """Out-of-fold predictions and places on the map do not depend on the history."""
    apply(repository, job(repository, "add_class", "c", POOL["c"][:8]))
    changed = repository.examples(serving(repository))
    with TemporaryDirectory() as directory:
        whole = Repository(Path(directory))
        images = {label: POOL[label][:8] for label in "abc"}
        fitted = whole.examples(tiny.publish(whole, "m", tiny.embed_pictures(images)))
    for name in ("digests", "targets", "ranked", "ranked_probabilities", "points", "folds"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(fitted, name))


Name = tuple[str, int]
"""An image of the pool: its own label and number."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A valid change of a history: its job's fields, and the labels and images after it."""

    kind: ChangeKind
    label: str = ""
    new_label: str = ""
    images: tuple[Name, ...] = ()
    after: dict[str, frozenset[Name]]


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Return sequences of changes that leave two labels, and LIMITS' minimum of images of each."""
    least = LIMITS.min_images_per_label
    has = {label: {(label, number) for number in range(8)} for label in "ab"}
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 6))):
        kinds: list[ChangeKind] = ["add_examples", "add_classes", "retrain", "rename_class"]
        kinds += ["remove_class"] if len(has) > 2 else []
        kinds += ["add_class"] if len(has) < len(POOL) else []
        spare = sorted(label for label in has if len(has[label]) > least)
        kinds += ["remove_examples", "move_examples"] if spare else []
        kind = draw(st.sampled_from(kinds))
        label, new_label, images = "", "", set[Name]()
        if kind == "add_class":
            label = draw(st.sampled_from(sorted(POOL.keys() - has.keys())))
            images = set(draw(st.lists(named(label), min_size=least, max_size=9, unique=True)))
            has[label] = set(images)
        elif kind == "add_examples":
            label = draw(st.sampled_from(sorted(has)))
            source = draw(st.sampled_from(sorted(POOL)))  # possibly also under another label
            images = set(draw(st.lists(named(source), min_size=1, max_size=4, unique=True)))
            has[label] |= images
        elif kind == "add_classes":
            # Labels of the pool, new ones or not.
            several = draw(st.sets(st.sampled_from(sorted(POOL)), min_size=1, max_size=3))
            for own in sorted(several):
                added = draw(st.lists(named(own), min_size=least, max_size=5, unique=True))
                images |= set(added)
                has.setdefault(own, set()).update(added)
        elif kind == "remove_class":
            label = draw(st.sampled_from(sorted(has)))
            del has[label]
        elif kind == "rename_class":
            label = draw(st.sampled_from(sorted(has)))
            new_label = draw(st.sampled_from(sorted(set("uvwxyz") - has.keys())))
            has[new_label] = has.pop(label)
        elif kind in {"remove_examples", "move_examples"}:
            source = draw(st.sampled_from(spare))
            most = len(has[source]) - least
            chosen = st.lists(st.sampled_from(sorted(has[source])), min_size=1, max_size=most)
            images = set(draw(chosen))
            others = sorted(has.keys() - {source})
            label = draw(st.sampled_from(others if kind == "move_examples" else ["", source]))
            after = {name: set(members) for name, members in has.items()}
            for name in after.keys() - {label} if kind == "move_examples" else [label or source]:
                after[name] -= images
            if kind == "remove_examples" and not label:
                after = {name: members - images for name, members in after.items()}
            if kind == "move_examples":
                after[label] |= images
            if any(len(members) < least for members in after.values()):
                continue
            has = after
        steps.append(
            Step(
                kind=kind,
                label=label,
                new_label=new_label,
                images=tuple(sorted(images)),
                after={name: frozenset(members) for name, members in has.items()},
            )
        )
    return steps


def named(label: str) -> st.SearchStrategy[Name]:
    """Return images of the pool."""
    return st.tuples(st.just(label), st.integers(0, 13))


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories())
def test_history_of_changes_equals_one_fit(history: list[Step]) -> None:
    """Labels, head and data digest equal those of one fit on the remaining images."""
    with TemporaryDirectory() as directory:
        repository = fitted_repository(Path(directory))
        for step in history:
            contents = [POOL[label][number] for label, number in step.images]
            names_examples = step.kind in {"remove_examples", "move_examples"}
            classes: dict[str, list[bytes]] = defaultdict(list)
            if step.kind == "add_classes":
                for label, number in step.images:
                    classes[label].append(POOL[label][number])
            change = job(
                repository,
                step.kind,
                step.label,
                () if names_examples else contents,
                classes=classes,
                new_label=step.new_label,
                digests=[*map(digest_of, contents)] if names_examples else (),
            )
            apply(repository, change)
        manifest = serving(repository)
        remains = history[-1].after if history else {}
        if remains:
            assert (manifest.labels, repository.head(manifest), manifest.data_digest) == fit(
                {
                    label: [POOL[name][number] for name, number in sorted(images)]
                    for label, images in remains.items()
                }
            )


@pytest.mark.slow
def test_rename_class_equals_a_fit_with_the_new_name(repository: Repository) -> None:
    """The labels are in the order of the new names."""
    apply(repository, job(repository, "rename_class", "a", new_label="z"))
    manifest = serving(repository)
    assert manifest.labels == ("b", "z")
    labels, head, digest = fit({"z": POOL["a"][:8], "b": POOL["b"][:8]})
    assert (manifest.labels, repository.head(manifest), manifest.data_digest) == (
        labels,
        head,
        digest,
    )


@pytest.mark.slow
def test_changes_rewrite_no_shard(repository: Repository) -> None:
    """A change adds at most one shard; a rewritten file would have a new inode."""
    shards = repository.root / "exemplars"
    before = {path.name: path.stat().st_ino for path in shards.iterdir()}
    apply(repository, job(repository, "add_class", "c", POOL["c"][:5]))
    apply(repository, job(repository, "add_examples", "a", POOL["a"][8:10]))
    apply(repository, job(repository, "rename_class", "a", new_label="z"))
    apply(repository, job(repository, "remove_class", "b"))
    after = {path.name: path.stat().st_ino for path in shards.iterdir()}
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()


def test_remove_class_drops_the_exemplars_of_the_label(repository: Repository) -> None:
    """The parent revision still refers to them."""
    apply(repository, job(repository, "add_class", "c", POOL["c"][:5]))
    parent = serving(repository)
    apply(repository, job(repository, "remove_class", "c"))
    now = serving(repository)
    assert {shard.label for shard in now.exemplars} == {"a", "b"}
    assert set(repository.exemplars(now.exemplars).labels) == {"a", "b"}
    assert repository.exemplars(parent.exemplars).labels == ("a", "b", "c")


def test_add_examples_of_duplicates_publishes_nothing(repository: Repository) -> None:
    """The duplicates are skipped by name, and the result has the parent's revision."""
    result = apply(repository, job(repository, "add_examples", "a", POOL["a"][:4]))
    assert (result.revision, result.images_used) == (1, 0)
    assert [(image.name, image.reason) for image in result.skipped] == [
        (f"a-{number}", "DUPLICATE") for number in range(4)
    ]
    assert repository.revisions("m") == [1]


def test_add_class_without_a_usable_image_is_not_ready(repository: Repository) -> None:
    """A label needs an image, even if the limit is 0."""
    trainer = Trainer(repository, cores=2, limits=replace(LIMITS, min_images_per_label=0))
    with pytest.raises(NotReady, match="has 0 usable images; at least 1 are needed") as caught:
        trainer.embed(job(repository, "add_class", "c", [b"no image"]), ignore)
    assert caught.value.reason == "TOO_FEW_IMAGES"


def test_add_examples_learns_only_new_images(repository: Repository) -> None:
    """Of an upload with duplicates, the other images are learnt."""
    result = apply(repository, job(repository, "add_examples", "a", POOL["a"][6:11]))
    assert (result.revision, result.images_used, len(result.skipped)) == (2, 3, 2)
    assert serving(repository).images == 8 + 8 + 3


def test_conflicts_are_reported_before_solving(repository: Repository) -> None:
    """The same pixels under another label are a conflict once all images are embedded."""
    reported: list[tuple[int, int, tuple[Conflict, ...]]] = []

    def record(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
        reported.append((done, total, conflicts))

    change = job(repository, "add_class", "c", [*POOL["c"][:4], POOL["a"][2]])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = trainer.embed(change, record)
    (conflict,) = new.conflicts
    assert (conflict.name, conflict.label, conflict.exact) == ("c-4", "a", True)
    assert reported[-1] == (5, 5, new.conflicts)


def test_more_conflicts_than_the_gate_allows_are_not_ready(repository: Repository) -> None:
    """The message names the first conflicts."""
    gate = replace(ANY, max_conflicts=0)
    change = job(repository, "add_class", "c", [*POOL["c"][:4], POOL["a"][2]], gate=gate)
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    message = r"1 images are duplicates of .* and the gate allows 0: c-4 "
    with pytest.raises(NotReady, match=message) as caught:
        trainer.embed(change, ignore)
    assert caught.value.reason == "LABEL_CONFLICTS"


def test_add_classes_teaches_all_labels_in_one_revision(repository: Repository) -> None:
    """New labels and more images of a known one: a revision, a shard a label, a verdict a label."""
    classes = {"a": POOL["a"][6:11], "d": POOL["d"][:5], "c": POOL["c"][:4]}
    result = apply(repository, job(repository, "add_classes", classes=classes))
    manifest = serving(repository)
    assert (manifest.revision, manifest.labels) == (2, tuple("abcd"))
    assert (result.images_used, manifest.images) == (12, 8 + 8 + 12)
    assert [ref.label for ref in manifest.exemplars] == ["a", "b", "a", "c", "d"]
    skipped = [(image.label, image.name, image.reason) for image in result.skipped]
    assert skipped == [("a", "a-0", "DUPLICATE"), ("a", "a-1", "DUPLICATE")]
    assert result.comparison is not None
    taught = [(each.label, each.images) for each in result.comparison.taught_labels]
    assert taught == [("a", 11), ("c", 4), ("d", 5)]
    one_by_one = {**classes, "a": POOL["a"][:11], "b": POOL["b"][:8]}
    assert (manifest.labels, repository.head(manifest), manifest.data_digest) == fit(one_by_one)


def test_add_classes_names_all_labels_with_too_few_images(repository: Repository) -> None:
    """A new label needs the minimum, a known one a usable image; nothing is stored."""
    classes = {"a": [b"no image"], "c": POOL["c"][:2], "d": POOL["d"][:5], "e": [b"junk"] * 3}
    change = job(repository, "add_classes", classes=classes)
    before = repository.stored("exemplars").keys()
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    with pytest.raises(NotReady) as caught:
        trainer.embed(change, ignore)
    assert caught.value.reason == "TOO_FEW_IMAGES"
    short = [line.split(" usable")[0] for line in str(caught.value).split("label ")[1:]]
    assert short == ["'a' has 0", "'c' has 2", "'e' has 0"]
    assert repository.stored("exemplars").keys() == before


def test_images_of_one_call_may_conflict_with_one_another(repository: Repository) -> None:
    """The same pixels under two of its labels are a conflict of both."""
    shared = POOL["c"][0]
    classes = {"c": POOL["c"][:4], "d": [*POOL["d"][:4], shared]}
    new = Trainer(repository, cores=2, limits=LIMITS).embed(
        job(repository, "add_classes", classes=classes), ignore
    )
    assert [(found.uploaded_label, found.name, found.label) for found in new.conflicts] == [
        ("c", "c-0", "d"),
        ("d", "d-4", "c"),
    ]


def test_gate_judges_each_label_of_add_classes(repository: Repository) -> None:
    """One label that cannot be told from the others rejects all, and is the one that is named."""
    classes = {"c": POOL["a"][:8] + POOL["b"][:8], "d": POOL["d"][:12]}
    gate = Gate(max_old_class_drop=1.0)
    change = job(repository, "add_classes", classes=classes, gate=gate)
    candidate = solve(repository, change)
    assert candidate.rejected is not None
    assert "the recall of 'c' is" in candidate.rejected.message
    assert "the recall of 'd' is" not in candidate.rejected.message
    assert repository.serving("m") == 1


def test_new_exemplars_of_an_earlier_version_are_read() -> None:
    """They have one shard, of the job's label."""
    job = Job(kind="add_class", model="m", accepted=0.0, label="c")
    stored = {"shard": "1" * 64, "backbone": "", "images": 1, "skipped": [], "conflicts": []}
    assert from_data(stored, NewExemplars).shards_of(job) == {"c": "1" * 64}


def harmful(repository: Repository, *, validate_only: bool = False) -> Job:
    """Return a job that adds the images of all existing classes under a new label."""
    both = POOL["a"][:8] + POOL["b"][:8]
    return job(repository, "add_class", "c", both, gate=Gate(), validate_only=validate_only)


def solve(repository: Repository, change: Job, operation: str = "x") -> Candidate:
    """Run the first two steps of a job."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    return trainer.solve(change, trainer.embed(change, ignore), operation)


def test_change_that_fails_the_gate_is_published_and_rejected(repository: Repository) -> None:
    """The rejected revision has a report and reasons; the parent continues to serve."""
    candidate = solve(repository, harmful(repository))
    assert candidate.rejected is not None
    assert (candidate.rejected.kind, candidate.rejected.reason) == ("NotReady", "GATE_FAILED")
    assert candidate.rejected.revision == 2
    assert candidate.rejected.comparison == repository.manifest("m", 2).comparison
    rejection = repository.manifest("m", 2).rejection
    assert rejection is not None
    assert rejection.failures
    assert all(failure in candidate.rejected.message for failure in rejection.failures)
    assert b"rejected" in repository.report(repository.manifest("m", 2))
    assert repository.serving("m") == 1


def test_result_compares_the_labels_with_the_parent(repository: Repository) -> None:
    """The comparison has the old labels before and after, and the recall of the new label."""
    result = apply(repository, job(repository, "add_class", "c", POOL["c"], gate=Gate()))
    comparison = result.comparison
    assert comparison is not None
    assert comparison == serving(repository).comparison
    assert [(label.label, label.images) for label in comparison.labels] == [("a", 8), ("b", 8)]
    assert comparison.taught is not None
    assert (comparison.taught.label, comparison.taught.images) == ("c", 14)
    assert comparison.drop_low <= comparison.drop <= comparison.drop_high


@pytest.mark.parametrize("harm", [False, True])
def test_validate_only_publishes_nothing(repository: Repository, harm: bool) -> None:
    """The result predicts the revision, and has the gate's failures."""
    change = (
        harmful(repository, validate_only=True)
        if harm
        else job(repository, "add_class", "c", POOL["c"], gate=Gate(), validate_only=True)
    )
    candidate = solve(repository, change)
    assert (candidate.published, candidate.rejected) == (False, None)
    assert bool(candidate.result.gate_failures) == harm
    assert candidate.result.predicted is not None
    assert candidate.result.predicted.labels == ("a", "b", "c")
    assert candidate.result.comparison is not None
    assert repository.revisions("m") == [1]


def test_progress_counts_the_images(repository: Repository) -> None:
    """Each image is counted once, with the number of all."""
    counts: list[tuple[int, int]] = []

    def note(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
        assert not conflicts
        counts.append((done, total))

    change = job(repository, "add_class", "c", POOL["c"][:5])
    Trainer(repository, cores=2, limits=LIMITS).embed(change, note)
    assert [count for count in counts if count != counts[-1]] == [(n, 5) for n in range(1, 5)]
    assert counts[-1] == (5, 5)


def test_repeated_steps_publish_once(repository: Repository) -> None:
    """Each step can be run again after a crash: one revision, one move."""
    change = job(repository, "add_class", "c", POOL["c"][:5])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = trainer.embed(change, ignore)
    assert trainer.embed(change, ignore) == new
    candidate = trainer.solve(change, new, "x")
    assert trainer.solve(change, new, "x") == candidate
    for _ in range(2):
        trainer.serve(change, 2, "x")
    assert repository.revisions("m") == [1, 2]
    assert [move.revision for move in repository.serving_state("m").moves] == [1, 2]


@pytest.mark.slow
def test_reused_id_with_other_images_publishes_its_own_revision(repository: Repository) -> None:
    """The revision of the deleted operation of that id, with the same parent, is not returned."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    for number, contents in ((2, POOL["c"][:5]), (3, POOL["c"][5:10])):
        change = job(repository, "add_class", "c", contents)
        candidate = trainer.solve(change, trainer.embed(change, ignore), "x")
        assert candidate.result.revision == number
        manifest = repository.manifest("m", number)
        assert (manifest.operation, manifest.parent) == ("x", 1)
        digests = {row.tobytes().hex() for row in repository.exemplars(manifest.exemplars).contents}
        assert {sha256(content) for content in contents} <= digests


@pytest.mark.slow
def test_reused_id_with_another_change_serves_its_own_revision(repository: Repository) -> None:
    """The move of the pointer by the deleted operation of that id does not count."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    for label in "cd":
        change = job(repository, "add_class", label, POOL[label][:5])
        candidate = trainer.solve(change, trainer.embed(change, ignore), "x")
        trainer.serve(change, candidate.result.revision, "x")
        assert repository.serving("m") == candidate.result.revision
    assert serving(repository).labels == ("a", "b", "c", "d")


def test_parent_deleted_by_gc_is_overtaken_not_corrupt(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the parent no longer serves and its files are missing, the change is repeated."""
    other = tiny.publish(
        repository, "m", tiny.embed_pictures({label: POOL[label][:9] for label in "ab"})
    )
    repository.set_serving("m", 1, why="rollback")
    change = job(repository, "rename_class", "a", new_label="c")
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = trainer.embed(change, ignore)
    publish = repository.publish

    def overtaken(*arguments: Any, **options: Any) -> Manifest:
        repository.set_serving("m", other.revision, why="rollback")
        collect(repository, keep=1, spare_seconds=0)
        return publish(*arguments, **options)

    monkeypatch.setattr(repository, "publish", overtaken)
    with pytest.raises(NotReady) as caught:
        trainer.solve(change, new, "x")
    assert caught.value.reason in OVERTAKEN
    monkeypatch.undo()
    assert trainer.solve(change, new, "x").result.revision == 3


def test_repeated_serve_does_not_undo_a_rollback(repository: Repository) -> None:
    """An operation moves the serving pointer only once."""
    change = job(repository, "add_class", "c", POOL["c"][:5])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    candidate = trainer.solve(change, trainer.embed(change, ignore), "x")
    trainer.serve(change, candidate.result.revision, "x")
    repository.set_serving("m", 1, why="rollback")
    trainer.serve(change, candidate.result.revision, "x")
    assert repository.serving("m") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("expected", "error"), [(0, NotReady), (1, Stale)])
def test_serve_after_a_fit_raises(
    repository: Repository, expected: int, error: type[Exception]
) -> None:
    """A candidate whose parent no longer serves is not served; with an expected revision: Stale."""
    change = job(repository, "add_class", "c", POOL["c"][:5], expected=expected)
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    candidate = trainer.solve(change, trainer.embed(change, ignore), "x")
    tiny.publish(repository, "m", tiny.embed_pictures({label: POOL[label][:9] for label in "ab"}))
    with pytest.raises(error, match="serves revision 3 by now, and revision 2 was made from 1"):
        trainer.serve(change, candidate.result.revision, "x")
    again = trainer.solve(replace(change, expected_revision=0), new_of(trainer, change), "x")
    assert (again.result.revision, repository.manifest("m", 4).parent) == (4, 3)


def new_of(trainer: Trainer, change: Job) -> NewExemplars:
    """Embed a job's uploads, whatever revision is serving."""
    return trainer.embed(replace(change, expected_revision=0), ignore)


def test_solve_after_a_fit_on_another_backbone_is_not_ready(repository: Repository) -> None:
    """Embeddings of different backbones are not mixed."""
    change = job(repository, "add_class", "c", POOL["c"][:5])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = replace(trainer.embed(change, ignore), backbone="0" * 64)
    with pytest.raises(NotReady) as caught:
        trainer.solve(change, new, "x")
    assert caught.value.reason == "BACKBONE_CHANGED"


def test_retrain_changes_the_recipe(repository: Repository) -> None:
    """Retrain solves the requested head on the same exemplars; later changes use its recipe."""
    recipe = Recipe(head="ridge", normalisation="l2")
    apply(repository, job(repository, "retrain", recipe=recipe))
    manifest = serving(repository)
    assert (manifest.chosen.kind, manifest.chosen.normalisation) == ("ridge", "l2")
    assert manifest.exemplars == repository.manifest("m", 1).exemplars
    apply(repository, job(repository, "add_class", "c", POOL["c"][:5]))
    assert serving(repository).recipe == recipe


def test_change_of_large_model_gives_head_of_a_fit(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With embeddings that stay in their shards, AddClass gives the head of one fit, and a note."""
    monkeypatch.setattr(embedding_rows, "MAX_NUMBERS", 1)
    for module in (streamed, gate_module):
        monkeypatch.setattr(module, "LEAST_SAMPLE", 6)
    monkeypatch.setattr(streamed, "JUDGED_ROWS", 9)
    before = repository.metrics(serving(repository)).images
    apply(repository, job(repository, "retrain", recipe=Recipe()))
    apply(repository, job(repository, "add_class", "c", POOL["c"][:7]))
    apply(repository, job(repository, "add_class", "d", POOL["d"][:6]))
    manifest = serving(repository)
    images = {label: POOL[label][:8] for label in "ab"}
    images |= {"c": POOL["c"][:7], "d": POOL["d"][:6]}
    assert fit(images, Recipe())[1] == repository.head(manifest)
    assert manifest.chosen.kind in streamed.KINDS
    assert repository.metrics(manifest).images == 9 < before
    assert f"{manifest.images} images of 4 labels" in repository.report(manifest).decode()


def test_new_head_classifies_the_new_label(repository: Repository) -> None:
    """An image that is not in the training set has the added label."""
    apply(repository, job(repository, "add_class", "c", POOL["c"]))
    manifest = serving(repository)
    embedding = tiny.embed_pictures({"?": [picture("crimson", 90)]}).embeddings
    session = open_session(repository.head(manifest), output="probabilities")
    assert manifest.labels[int(np.argmax(session.run(embedding)))] == "c"


@pytest.mark.parametrize("kind", ["retrain", "rename_class"])
def test_change_refuses_a_modified_backbone_json(repository: Repository, kind: ChangeKind) -> None:
    """A new revision has the digest of its parent's backbone.json.

    Otherwise an attacker who can write files could have a worker sign another preprocess spec.
    """
    manifest = serving(repository)
    path = (repository.root / repository.key("backbones", manifest.backbone)) / "backbone.json"
    path.write_bytes(path.read_bytes().replace(b'"resize": 16', b'"resize": 17'))
    label = "a" if kind == "rename_class" else ""
    with pytest.raises(Corrupt, match=r"backbone\.json has sha256"):
        apply(repository, job(repository, kind, label, new_label="z" if label else ""))
    assert repository.revisions("m") == [1]


def test_twin_embeds_where_the_backbone_is_off(tmp_path: Path) -> None:
    """New exemplars have the twin's embeddings, not saturated ones; there is one warning."""
    repository = tiny.saturating_repository(tmp_path / "repository")
    parent = repository.manifest("colours", 1)
    contents = pictures("violet", 8)
    change = replace(job(repository, "add_class", "violet", contents), model="colours")
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    with capture_logs() as logs:
        new = trainer.embed(change, ignore)
        again = trainer.embed(change, ignore)
    expected = tiny.embed_pictures({"violet": contents}).embeddings
    assert new == again
    assert new.backbone == parent.backbone
    np.testing.assert_array_equal(
        np.sort(repository.shard(new.shards["violet"]).embeddings, axis=0),
        np.sort(expected, axis=0),
    )
    (line,) = [line for line in logs if line["event"] == "backbone is off"]
    assert (line["log_level"], line["used"]) == ("warning", "fp32")
    candidate = trainer.solve(change, new, "operation")
    made = repository.manifest("colours", candidate.result.revision)
    assert made.backbone == parent.backbone
    assert "violet" in made.labels
