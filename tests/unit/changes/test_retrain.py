"""A changed model is what one fit on the same images gives, whatever its history."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.comparison import Gate
from topwork.bundle.files import sha256
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.manifest import Manifest
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind, ChangeResult, Conflict, Job, Upload
from topwork.changes.retrain import OVERTAKEN, Candidate, NewExemplars, Trainer
from topwork.errors import Corrupt, NotReady, Stale
from topwork.limits import DEFAULT_LIMITS
from topwork.runtime.backend import open_session

ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
POOL = {
    label: pictures(colour, 14)
    for label, colour in zip("abcde", ("amber", "blue", "crimson", "green", "violet"), strict=True)
}
"""Images of each label that a history may bring."""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with a model ``m`` of the labels a and b."""
    return begun(tmp_path)


@tiny.copied
def begun(root: Path, first: int = 8) -> Repository:
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
    new_label: str = "",
    gate: Gate = ANY,
    recipe: Recipe | None = None,
    expected: int = 0,
    validate_only: bool = False,
) -> Job:
    """Return a job whose images are stored."""
    return Job(
        kind=kind,
        model="m",
        label=label,
        new_label=new_label,
        accepted=0.0,
        uploads=tuple(
            Upload(name=f"{label}-{number}", digest=repository.put_image(content))
            for number, content in enumerate(contents)
        ),
        gate=gate,
        recipe=recipe,
        expected_revision=expected,
        validate_only=validate_only,
    )


def silent(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
    """Take no note of progress."""


def changed(repository: Repository, asked: Job) -> ChangeResult:
    """Do a job, all its steps, and return what came of it."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    operation = str(uuid.uuid4())
    candidate = trainer.solve(asked, trainer.embed(asked, silent), operation)
    assert candidate.rejected is None
    if candidate.published:
        trainer.serve(asked, candidate.result.revision, operation)
    return candidate.result


def serving(repository: Repository) -> Manifest:
    """Return the manifest that serves."""
    return repository.manifest("m", repository.serving("m"))


def fitted(images: dict[str, list[bytes]]) -> tuple[tuple[str, ...], bytes, str]:
    """Return labels, head and data digest of one fit on ``images``."""
    with TemporaryDirectory() as directory:
        made = Repository(Path(directory))
        manifest = tiny.publish(made, "m", tiny.embed_pictures(images))
        return manifest.labels, made.head(manifest), manifest.data_digest


Step = tuple[ChangeKind, str, int, int]


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Return changes, each possible after those before: kind, label, first and last image."""
    has = {"a": set(range(8)), "b": set(range(8))}
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 5))):
        kinds: list[ChangeKind] = ["add_examples", "retrain"]
        kinds += ["remove_class"] if len(has) > 2 else []
        kinds += ["add_class"] if len(has) < len(POOL) else []
        kind = draw(st.sampled_from(kinds))
        begin, end = 0, 0
        label = ""
        if kind == "add_class":
            label = draw(st.sampled_from(sorted(POOL.keys() - has.keys())))
            begin = draw(st.integers(0, 8))
            end = draw(st.integers(begin + 3, 14))
            has[label] = set(range(begin, end))
        elif kind == "add_examples":
            label = draw(st.sampled_from(sorted(has)))
            begin = draw(st.integers(0, 12))
            end = draw(st.integers(begin + 1, 14))
            has[label] |= set(range(begin, end))
        elif kind == "remove_class":
            label = draw(st.sampled_from(sorted(has)))
            del has[label]
        steps.append((kind, label, begin, end))
    return steps


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories())
def test_a_history_gives_what_one_fit_gives(history: list[Step]) -> None:
    """Labels, head and data are, byte for byte, those of one fit on the images that remain."""
    remains = {"a": set(range(8)), "b": set(range(8))}
    with TemporaryDirectory() as directory:
        repository = begun(Path(directory))
        for kind, label, begin, end in history:
            changed(
                repository, job(repository, kind, label, POOL[label][begin:end] if label else ())
            )
            if kind == "remove_class":
                del remains[label]
            elif label:
                remains.setdefault(label, set()).update(range(begin, end))
        manifest = serving(repository)
        assert (manifest.labels, repository.head(manifest), manifest.data_digest) == fitted(
            {label: [POOL[label][n] for n in sorted(kept)] for label, kept in remains.items()}
        )


def test_a_renamed_class_is_what_a_fit_under_that_name_gives(repository: Repository) -> None:
    """RenameClass gives the head that the new name would have had from the start."""
    changed(repository, job(repository, "rename_class", "a", new_label="z"))
    manifest = serving(repository)
    assert manifest.labels == ("b", "z")
    labels, head, digest = fitted({"z": POOL["a"][:8], "b": POOL["b"][:8]})
    assert (manifest.labels, repository.head(manifest), manifest.data_digest) == (
        labels,
        head,
        digest,
    )


def test_no_shard_is_rewritten(repository: Repository) -> None:
    """Each change refers to the shards that are there, and adds at most its own.

    A file that is written anew is another inode; that it is young again changes nothing in it.
    """
    shards = repository.root / "exemplars"
    before = {path.name: path.stat().st_ino for path in shards.iterdir()}
    changed(repository, job(repository, "add_class", "c", POOL["c"][:5]))
    changed(repository, job(repository, "add_examples", "a", POOL["a"][8:10]))
    changed(repository, job(repository, "rename_class", "a", new_label="z"))
    changed(repository, job(repository, "remove_class", "b"))
    after = {path.name: path.stat().st_ino for path in shards.iterdir()}
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()


def test_what_was_removed_is_nowhere_in_the_new_revision(repository: Repository) -> None:
    """No exemplar of a removed label is referred to; the revision before still has them."""
    changed(repository, job(repository, "add_class", "c", POOL["c"][:5]))
    parent = serving(repository)
    changed(repository, job(repository, "remove_class", "c"))
    now = serving(repository)
    assert {one.label for one in now.exemplars} == {"a", "b"}
    assert set(repository.exemplars(now.exemplars).labels) == {"a", "b"}
    assert repository.exemplars(parent.exemplars).labels == ("a", "b", "c")


def test_images_that_the_label_has_are_no_ops(repository: Repository) -> None:
    """Photos that are there already are named and change nothing: no revision is made."""
    result = changed(repository, job(repository, "add_examples", "a", POOL["a"][:4]))
    assert (result.revision, result.images_used) == (1, 0)
    assert [(one.name, one.reason) for one in result.skipped] == [
        (f"a-{number}", "DUPLICATE") for number in range(4)
    ]
    assert repository.revisions("m") == [1]


def test_of_more_images_the_new_ones_are_learnt(repository: Repository) -> None:
    """Of an upload that overlaps with what is there the rest is learnt."""
    result = changed(repository, job(repository, "add_examples", "a", POOL["a"][6:11]))
    assert (result.revision, result.images_used, len(result.skipped)) == (2, 3, 2)
    assert serving(repository).images == 8 + 8 + 3


def test_an_image_of_another_label_is_a_conflict_before_training(repository: Repository) -> None:
    """The same pixels under another label are named as soon as all are embedded."""
    told: list[tuple[int, int, tuple[Conflict, ...]]] = []

    def note(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
        told.append((done, total, conflicts))

    asked = job(repository, "add_class", "c", [*POOL["c"][:4], POOL["a"][2]])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = trainer.embed(asked, note)
    (conflict,) = new.conflicts
    assert (conflict.name, conflict.label, conflict.exact) == ("c-4", "a", True)
    assert told[-1] == (5, 5, new.conflicts)


def test_a_gate_may_let_no_conflict_through(repository: Repository) -> None:
    """With more conflicts than the gate lets, nothing is learnt and the first are named."""
    gate = replace(ANY, max_conflicts=0)
    asked = job(repository, "add_class", "c", [*POOL["c"][:4], POOL["a"][2]], gate=gate)
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    said = r"1 images show what .* and the gate lets 0: c-4 "
    with pytest.raises(NotReady, match=said) as caught:
        trainer.embed(asked, silent)
    assert caught.value.reason == "LABEL_CONFLICTS"


def harmful(repository: Repository, *, validate_only: bool = False) -> Job:
    """Return a job that teaches images of a known class under a new label."""
    return job(
        repository, "add_class", "c", POOL["a"][:8], gate=Gate(), validate_only=validate_only
    )


def candidate(repository: Repository, asked: Job, operation: str = "x") -> Candidate:
    """Return what is solved for a job."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    return trainer.solve(asked, trainer.embed(asked, silent), operation)


def test_a_harmful_change_is_published_and_rejected(repository: Repository) -> None:
    """What breaks the gate has its report and its reasons, and what served goes on serving."""
    found = candidate(repository, harmful(repository))
    assert found.rejected is not None
    assert (found.rejected.kind, found.rejected.reason) == ("NotReady", "GATE_FAILED")
    assert found.rejected.revision == 2
    assert found.rejected.comparison == repository.manifest("m", 2).comparison
    rejection = repository.manifest("m", 2).rejection
    assert rejection is not None
    assert rejection.failures
    assert all(failure in found.rejected.message for failure in rejection.failures)
    assert b"rejected" in repository.report(repository.manifest("m", 2))
    assert repository.serving("m") == 1


def test_a_good_change_says_what_it_did(repository: Repository) -> None:
    """The comparison has the old labels before and after, and the new one's recall."""
    result = changed(repository, job(repository, "add_class", "c", POOL["c"], gate=Gate()))
    comparison = result.comparison
    assert comparison is not None
    assert comparison == serving(repository).comparison
    assert [(one.label, one.images) for one in comparison.labels] == [("a", 8), ("b", 8)]
    assert comparison.taught is not None
    assert (comparison.taught.label, comparison.taught.images) == ("c", 14)
    assert comparison.drop_low <= comparison.drop <= comparison.drop_high


@pytest.mark.parametrize("harm", [False, True])
def test_validating_changes_nothing(repository: Repository, harm: bool) -> None:
    """It says what would come of it and whether the gate would pass; nothing is published."""
    asked = (
        harmful(repository, validate_only=True)
        if harm
        else job(repository, "add_class", "c", POOL["c"], gate=Gate(), validate_only=True)
    )
    found = candidate(repository, asked)
    assert (found.published, found.rejected) == (False, None)
    assert bool(found.result.gate_failures) == harm
    assert found.result.predicted is not None
    assert found.result.predicted.labels == ("a", "b", "c")
    assert found.result.comparison is not None
    assert repository.revisions("m") == [1]


def test_a_step_that_is_repeated_publishes_once(repository: Repository) -> None:
    """After a crash each step can be run again: one revision, one move."""
    asked = job(repository, "add_class", "c", POOL["c"][:5])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = trainer.embed(asked, silent)
    assert trainer.embed(asked, silent) == new
    found = trainer.solve(asked, new, "x")
    assert trainer.solve(asked, new, "x") == found
    for _ in range(2):
        trainer.serve(asked, 2, "x")
    assert repository.revisions("m") == [1, 2]
    assert [one.revision for one in repository.serving_state("m").moves] == [1, 2]


def test_an_id_that_comes_again_with_other_images_is_another_change(
    repository: Repository,
) -> None:
    """What the deleted operation of that id had published, of the same parent, is not taken."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    for number, contents in ((2, POOL["c"][:5]), (3, POOL["c"][5:10])):
        asked = job(repository, "add_class", "c", contents)
        found = trainer.solve(asked, trainer.embed(asked, silent), "x")
        assert found.result.revision == number
        manifest = repository.manifest("m", number)
        assert (manifest.operation, manifest.parent) == ("x", 1)
        digests = {row.tobytes().hex() for row in repository.exemplars(manifest.exemplars).contents}
        assert {sha256(content) for content in contents} <= digests


def test_an_id_that_comes_again_with_another_change_serves_it(repository: Repository) -> None:
    """That the deleted operation of that id moved the pointer keeps this one from nothing."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    for label in "cd":
        asked = job(repository, "add_class", label, POOL[label][:5])
        found = trainer.solve(asked, trainer.embed(asked, silent), "x")
        trainer.serve(asked, found.result.revision, "x")
        assert repository.serving("m") == found.result.revision
    assert serving(repository).labels == ("a", "b", "c", "d")


def test_a_revision_that_gc_deletes_under_a_change_means_that_it_was_overtaken(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing of a parent that serves no more is no damage: the change is made again."""
    other = tiny.publish(repository, "m", tiny.embed_pictures({one: POOL[one][:9] for one in "ab"}))
    repository.set_serving("m", 1, why="rollback")
    asked = job(repository, "rename_class", "a", new_label="c")
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = trainer.embed(asked, silent)
    published = repository.publish

    def overtaken(*arguments: Any, **options: Any) -> Manifest:
        repository.set_serving("m", other.revision, why="rollback")
        collect(repository, keep=1, spare_seconds=0)
        return published(*arguments, **options)

    monkeypatch.setattr(repository, "publish", overtaken)
    with pytest.raises(NotReady) as caught:
        trainer.solve(asked, new, "x")
    assert caught.value.reason in OVERTAKEN
    monkeypatch.undo()
    assert trainer.solve(asked, new, "x").result.revision == 3


def test_what_was_rolled_back_since_stays(repository: Repository) -> None:
    """A last step that is repeated after a rollback does not undo it."""
    asked = job(repository, "add_class", "c", POOL["c"][:5])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    found = trainer.solve(asked, trainer.embed(asked, silent), "x")
    trainer.serve(asked, found.result.revision, "x")
    repository.set_serving("m", 1, why="rollback")
    trainer.serve(asked, found.result.revision, "x")
    assert repository.serving("m") == 1


@pytest.mark.parametrize(("expected", "error"), [(0, NotReady), (1, Stale)])
def test_a_fit_between_solving_and_serving(
    repository: Repository, expected: int, error: type[Exception]
) -> None:
    """A candidate whose parent serves no more is not served; who expected that one is told so."""
    asked = job(repository, "add_class", "c", POOL["c"][:5], expected=expected)
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    found = trainer.solve(asked, trainer.embed(asked, silent), "x")
    tiny.publish(repository, "m", tiny.embed_pictures({one: POOL[one][:9] for one in "ab"}))
    with pytest.raises(error, match="serves revision 3 by now, and revision 2 was made from 1"):
        trainer.serve(asked, found.result.revision, "x")
    again = trainer.solve(replace(asked, expected_revision=0), new_of(trainer, asked), "x")
    assert (again.result.revision, repository.manifest("m", 4).parent) == (4, 3)


def new_of(trainer: Trainer, asked: Job) -> NewExemplars:
    """Return what a job brings now."""
    return trainer.embed(replace(asked, expected_revision=0), silent)


def test_a_fit_on_another_backbone_between_embedding_and_solving(repository: Repository) -> None:
    """Embeddings of a backbone that the model has no more are not mixed with others."""
    asked = job(repository, "add_class", "c", POOL["c"][:5])
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    new = replace(trainer.embed(asked, silent), backbone="0" * 64)
    with pytest.raises(NotReady) as caught:
        trainer.solve(asked, new, "x")
    assert caught.value.reason == "BACKBONE_CHANGED"


def test_retrain_takes_another_head(repository: Repository) -> None:
    """Retrain solves on the same exemplars what it is told to, and children keep that."""
    recipe = Recipe(head="ridge", normalisation="l2")
    changed(repository, job(repository, "retrain", recipe=recipe))
    manifest = serving(repository)
    assert (manifest.chosen.kind, manifest.chosen.normalisation) == ("ridge", "l2")
    assert manifest.exemplars == repository.manifest("m", 1).exemplars
    changed(repository, job(repository, "add_class", "c", POOL["c"][:5]))
    assert serving(repository).recipe == recipe


def test_the_new_head_knows_the_new_class(repository: Repository) -> None:
    """A picture that nobody showed it is called by the label that was added."""
    changed(repository, job(repository, "add_class", "c", POOL["c"]))
    manifest = serving(repository)
    embedding = tiny.embed_pictures({"?": [picture("crimson", 90)]}).embeddings
    session = open_session(repository.head(manifest), output="probabilities")
    assert manifest.labels[int(np.argmax(session.run(embedding)))] == "c"


@pytest.mark.parametrize("kind", ["retrain", "rename_class"])
def test_a_changed_backbone_json_is_not_made_right_by_a_change(
    repository: Repository, kind: ChangeKind
) -> None:
    """A new revision names the backbone.json of its parent, never one that was put in its place.

    Else who can write files could let a worker sign another preprocess spec.
    """
    manifest = serving(repository)
    path = repository.path("backbones", manifest.backbone) / "backbone.json"
    path.write_bytes(path.read_bytes().replace(b'"resize": 16', b'"resize": 17'))
    label = "a" if kind == "rename_class" else ""
    with pytest.raises(Corrupt, match=r"backbone\.json has sha256"):
        changed(repository, job(repository, kind, label, new_label="z" if label else ""))
    assert repository.revisions("m") == [1]
