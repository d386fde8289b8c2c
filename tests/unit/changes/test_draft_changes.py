"""Changes of a draft: the model that they make equals a fit, whatever happened on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.pictures import pictures

from topwork.bundle.comparison import Gate
from topwork.bundle.draft import Draft
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind, Conflict, Job, Upload
from topwork.changes.new_exemplars import NewExemplars
from topwork.changes.retrain import Candidate, Trainer
from topwork.errors import AlreadyExists, NotFound, NotReady, Stale
from topwork.limits import DEFAULT_LIMITS

ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
POOL = {
    label: pictures(colour, 12)
    for label, colour in zip("abc", ("amber", "blue", "crimson"), strict=True)
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with the draft of a model ``m``."""
    return with_draft(tmp_path)


def with_draft(root: Path, *, seed: int = 0) -> Repository:
    """Return a new repository with the draft of a model ``m``."""
    made = Repository(root)
    model = tiny.backbone_model()
    info = made.put_backbone(model, tiny.backbone_info(model))
    new = Draft(
        model="m",
        backbone=info.digest,
        backbone_info=made.backbone_info_digest(info.digest),
        seed=seed,
        recipe=tiny.LOGISTIC,
        created=datetime.now(UTC),
    )
    made.new_model(new, most=9)
    return made


def job(
    repository: Repository,
    kind: ChangeKind,
    label: str = "",
    contents: Sequence[bytes] = (),
    *,
    new_label: str = "",
    gate: Gate = ANY,
    expected: int = 0,
    validate_only: bool = False,
) -> Job:
    """Return a job, and store its images."""
    uploads = tuple(
        Upload(name=f"{label}-{number}", digest=repository.put_image(content))
        for number, content in enumerate(contents)
    )
    return Job(
        kind=kind,
        model="m",
        label=label,
        new_label=new_label,
        accepted=0.0,
        uploads=uploads,
        gate=gate,
        expected_revision=expected,
        validate_only=validate_only,
    )


def ignore(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
    """Ignore progress."""


def solve(repository: Repository, change: Job, operation: str) -> tuple[NewExemplars, Candidate]:
    """Run the first two steps of a job."""
    trainer = Trainer(repository, cores=1, limits=LIMITS)
    new = trainer.embed(change, ignore)
    return new, trainer.solve(change, new, operation)


def end(
    repository: Repository, change: Job, operation: str, done: tuple[NewExemplars, Candidate]
) -> None:
    """Run the last step of a job, as the worker does."""
    trainer = Trainer(repository, cores=1, limits=LIMITS)
    new, candidate = done
    if candidate.published and candidate.result.revision:
        trainer.serve(change, candidate.result.revision, operation)
    elif candidate.published:
        trainer.keep(change, new, operation)


def apply(repository: Repository, change: Job, operation: str = "x") -> Candidate:
    """Run all steps of a job."""
    done = solve(repository, change, operation)
    if done[1].rejected is None:
        end(repository, change, operation, done)
    return done[1]


def fit(images: dict[str, list[bytes]], seed: int = 0) -> bytes:
    """Return the head of a fit."""
    with TemporaryDirectory() as directory:
        made = Repository(Path(directory))
        return made.head(tiny.publish(made, "m", tiny.embed_pictures(images), seed=seed))


def test_first_label_is_kept_and_second_one_serves(repository: Repository) -> None:
    """The first AddClass says that a label is missing; the second publishes revision 1."""
    first = apply(repository, job(repository, "add_class", "b", POOL["b"]), "1")
    assert (first.result.revision, first.result.missing_labels) == (0, 1)
    draft = repository.draft("m")
    assert (draft.labels, draft.images, draft.operations) == (("b",), 12, ("1",))
    second = apply(repository, job(repository, "add_class", "a", POOL["a"]), "2")
    manifest = repository.manifest("m", repository.serving("m"))
    assert (manifest.revision, manifest.parent, manifest.change) == (1, 0, "add_class")
    assert (second.result.missing_labels, second.result.comparison) == (0, None)
    assert repository.head(manifest) == fit({"a": POOL["a"], "b": POOL["b"]})
    third = apply(repository, job(repository, "add_class", "c", POOL["c"]), "3")
    assert third.result.comparison is not None
    assert repository.head(repository.manifest("m", 2)) == fit(POOL)


Step = tuple[ChangeKind, str, int, int]


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Return valid sequences of changes of an empty draft: kind, label, first and last image."""
    has: dict[str, set[int]] = {}
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 7))):
        serves = len(has) > 1
        kinds: list[ChangeKind] = ["add_class"] if len(has) < len(POOL) else []
        kinds += ["add_examples"] if has else []
        kinds += ["remove_class"] if len(has) > 2 or (has and not serves) else []
        kind = draw(st.sampled_from(kinds))
        choices = sorted(POOL.keys() - has.keys()) if kind == "add_class" else sorted(has)
        label = draw(st.sampled_from(choices))
        begin = draw(st.integers(0, 6))
        last = draw(st.integers(begin + 4, 12))
        if kind == "remove_class":
            del has[label]
        else:
            has.setdefault(label, set()).update(range(begin, last))
        steps.append((kind, label, begin, last))
    return steps


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=histories(), seed=st.sampled_from([0, 5]))
def test_random_history_from_a_draft_equals_a_fit(steps: list[Step], seed: int) -> None:
    """With two labels the model has served, and has the head of a fit with its seed."""
    with TemporaryDirectory() as directory:
        repository = with_draft(Path(directory), seed=seed)
        has: dict[str, set[int]] = {}
        for number, (kind, label, begin, last) in enumerate(steps):
            contents = [] if kind == "remove_class" else POOL[label][begin:last]
            apply(repository, job(repository, kind, label, contents), str(number))
            if kind == "remove_class":
                del has[label]
            else:
                has.setdefault(label, set()).update(range(begin, last))
        current = repository.current("m")
        assert current.labels == tuple(sorted(has))
        assert current.images == sum(map(len, has.values()))
        if isinstance(current, Draft):
            assert current.missing_labels == 2 - len(has)
        else:
            chosen = {label: [POOL[label][n] for n in sorted(rows)] for label, rows in has.items()}
            assert repository.head(current) == fit(chosen, seed)


def test_one_add_classes_makes_a_draft_serve(repository: Repository) -> None:
    """A model may be born with all its labels at once; its gate judges each."""
    change = job(repository, "add_classes", "", POOL["a"] + POOL["b"])
    uploads = tuple(
        replace(upload, label="a" if number < 12 else "b")
        for number, upload in enumerate(change.uploads)
    )
    apply(repository, replace(change, labels=("a", "b"), uploads=uploads))
    manifest = repository.manifest("m", repository.serving("m"))
    assert (manifest.revision, manifest.change, manifest.labels) == (1, "add_classes", ("a", "b"))
    assert repository.head(manifest) == fit({"a": POOL["a"], "b": POOL["b"]})


def test_last_step_may_be_repeated(repository: Repository) -> None:
    """Keeping a label twice, also after a later operation, changes the draft once."""
    change = job(repository, "add_class", "a", POOL["a"])
    done = solve(repository, change, "1")
    end(repository, change, "1", done)
    kept = repository.draft("m")
    end(repository, change, "1", done)
    assert repository.draft("m") == kept
    assert repository.was_moved_by("m", "1", 0)
    assert not repository.was_moved_by("m", "2", 0)
    apply(repository, job(repository, "remove_class", "a"), "2")
    end(repository, change, "1", done)
    assert repository.draft("m").labels == ()


def test_labels_of_a_draft_are_checked(repository: Repository) -> None:
    """As with a serving model: a label is new, or exists; there is no revision to expect."""
    apply(repository, job(repository, "add_class", "a", POOL["a"]))
    with pytest.raises(AlreadyExists):
        apply(repository, job(repository, "add_class", "a", POOL["b"]))
    with pytest.raises(NotFound, match="no label 'b'"):
        apply(repository, job(repository, "add_examples", "b", POOL["b"]))
    with pytest.raises(Stale, match="does not serve yet"):
        apply(repository, job(repository, "add_class", "b", POOL["b"], expected=1))
    with pytest.raises(NotReady, match="1 more is needed"):
        apply(repository, job(repository, "retrain"))
    assert repository.draft("m").labels == ("a",)


def test_rename_and_examples_change_a_draft(repository: Repository) -> None:
    """A label of a draft is renamed, gets photos, and duplicates change nothing."""
    apply(repository, job(repository, "add_class", "a", POOL["a"][:6]), "1")
    apply(repository, job(repository, "rename_class", "a", new_label="z"), "2")
    again = apply(repository, job(repository, "add_examples", "z", POOL["a"][:6]), "3")
    assert (again.published, again.result.missing_labels, again.result.images_used) == (False, 1, 0)
    apply(repository, job(repository, "add_examples", "z", POOL["a"]), "4")
    draft = repository.draft("m")
    assert (draft.labels, draft.images, draft.operations) == (("z",), 12, ("1", "2", "4"))


def test_dry_run_changes_no_draft(repository: Repository) -> None:
    """validate_only reports the missing label, or the metrics of the first revision."""
    dry = apply(repository, job(repository, "add_class", "a", POOL["a"], validate_only=True))
    assert (dry.published, dry.result.missing_labels) == (False, 1)
    assert repository.draft("m").labels == ()
    apply(repository, job(repository, "add_class", "a", POOL["a"]))
    dry = apply(repository, job(repository, "add_class", "b", POOL["b"], validate_only=True))
    assert dry.result.predicted is not None
    assert dry.result.predicted.labels == ("a", "b")
    assert repository.revisions("m") == []


def test_gate_rejects_a_first_revision_that_cannot_tell_its_labels_apart(
    repository: Repository,
) -> None:
    """Two labels with the same kind of photos: published as rejected, and the draft stays."""
    both = pictures("amber", 80)
    gate = Gate(min_new_class_recall=0.9)
    apply(repository, job(repository, "add_class", "a", both[:40]), "1")
    rejected = apply(repository, job(repository, "add_class", "b", both[40:], gate=gate), "2")
    assert rejected.rejected is not None
    assert "the recall of 'a'" in rejected.rejected.message or "of 'b'" in rejected.rejected.message
    assert repository.is_draft("m")
    assert repository.draft("m").labels == ("a",)
    apply(repository, job(repository, "add_class", "b", both[40:]), "3")
    assert repository.serving("m") == 2


def test_change_that_a_fit_overtakes_begins_again(repository: Repository) -> None:
    """A fit that serves between the steps is MODEL_CHANGED, for a first and for a second label."""
    first = job(repository, "add_class", "a", POOL["a"])
    done = solve(repository, first, "1")
    end(repository, first, "1", done)
    kept, second = (
        job(repository, "add_examples", "a", POOL["b"]),
        job(repository, "add_class", "b", POOL["b"]),
    )
    waiting = [
        (change, name, solve(repository, change, name))
        for change, name in ((kept, "2"), (second, "3"))
    ]
    tiny.publish(repository, "m", tiny.embed_pictures({"a": POOL["a"], "d": POOL["c"]}))
    before = repository.serving("m")
    for change, name, solved in waiting:
        with pytest.raises(NotReady) as caught:
            end(repository, change, name, solved)
        assert caught.value.reason == "MODEL_CHANGED"
    assert repository.serving("m") == before


@pytest.mark.parametrize("label", ["first", "second"])
def test_deletion_between_the_steps_is_not_found(label: str, repository: Repository) -> None:
    """A change of a model that is deleted meanwhile fails, and makes no directory."""
    if label == "second":
        apply(repository, job(repository, "add_class", "a", POOL["a"]), "1")
    change = job(repository, "add_class", "b", POOL["b"])
    trainer = Trainer(repository, cores=1, limits=LIMITS)
    new = trainer.embed(change, ignore)
    candidate = trainer.solve(change, new, "2")
    repository.delete_model("m")
    for step in (
        lambda: trainer.embed(change, ignore),
        lambda: trainer.solve(change, new, "2"),
        lambda: end(repository, change, "2", (new, candidate)),
    ):
        with pytest.raises(NotFound, match="was deleted"):
            step()
    assert not (repository.root / "models" / "m").exists()
