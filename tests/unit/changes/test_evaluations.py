"""Evaluation sets: Evaluate as an operation, and the verdict of gates on changes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.comparison import Gate
from topwork.bundle.documents import to_json
from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.evaluation_sets import EvaluationSets
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.store import Repository
from topwork.changes.evaluations import check_evaluation
from topwork.changes.jobs import ChangeKind, Conflict, EvaluationJob, Job, Upload
from topwork.changes.retrain import Candidate, Trainer
from topwork.errors import AlreadyExists, InvalidInput, NotFound, NotReady
from topwork.limits import DEFAULT_LIMITS

ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
LABELS = ("amber", "blue", "crimson")
FRESH = 1000
"""Index of the first picture that no revision is trained on."""


@tiny.copied
def fitted(root: Path) -> Repository:
    """Return a repository with a model ``m`` of three labels of 12 pictures each."""
    made = Repository(root)
    tiny.publish(made, "m", tiny.embed_pictures({label: pictures(label, 12) for label in LABELS}))
    return made


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with a model ``m``."""
    return fitted(tmp_path)


def ignore(done: int, total: int, conflicts: tuple[Conflict, ...] = ()) -> None:
    """Ignore progress."""


def uploads(repository: Repository, images: Mapping[str, Sequence[bytes]]) -> tuple[Upload, ...]:
    """Store images, and return them as uploads with labels and a column."""
    return tuple(
        Upload(
            name=f"{label or 'stranger'}-{number}",
            digest=repository.put_image(content),
            label=label,
            columns=(("parity", "odd" if number % 2 else "even"),),
        )
        for label, contents in images.items()
        for number, content in enumerate(contents)
    )


def evaluation(
    repository: Repository, images: Mapping[str, Sequence[bytes]], **parameters: Any
) -> Job:
    """Return the job of an evaluation, and store its images."""
    return Job(
        kind="evaluate",
        model="m",
        accepted=1e9,
        uploads=uploads(repository, images),
        evaluation=EvaluationJob(**parameters),
    )


def held_out(labels: Sequence[str] = LABELS, count: int = 20) -> dict[str, list[bytes]]:
    """Return pictures that no revision is trained on."""
    return {label: pictures(label, count, start=FRESH) for label in labels}


def change(
    repository: Repository,
    kind: ChangeKind,
    label: str,
    contents: Sequence[bytes] = (),
    **more: Any,
) -> Job:
    """Return the job of a change that passes the gate of cross-validation."""
    images = uploads(repository, {label: contents})
    stored = tuple(Upload(name=image.name, digest=image.digest) for image in images)
    return Job(kind=kind, model="m", accepted=2e9, label=label, uploads=stored, gate=ANY, **more)


def run(repository: Repository, job: Job, operation: str = "") -> Candidate:
    """Run all steps of a job and return its candidate."""
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    operation = operation or str(uuid.uuid4())
    candidate = trainer.solve(job, trainer.embed(job, ignore), operation)
    if candidate.published and candidate.rejected is None:
        trainer.serve(job, candidate.result.revision, operation)
    return candidate


def evaluated(candidate: Candidate) -> EvaluationResult:
    """Return the result of an evaluation."""
    result = candidate.result.evaluation
    assert result is not None
    return result


def store(repository: Repository, name: str = "held-out", **more: Any) -> EvaluationResult:
    """Store the held-out pictures as a set."""
    images = more.pop("images", None) or held_out()
    return evaluated(run(repository, evaluation(repository, images, name=name, **more)))


def mislabelled(count: int = 40) -> list[bytes]:
    """Return pictures of blue, which a change adds to amber."""
    return pictures("blue", count, start=100)


def test_evaluation_has_all_numbers(repository: Repository) -> None:
    """Accuracy, unknown detection, subgroups, comparison and left-out images are in the result."""
    run(repository, change(repository, "add_class", "violet", pictures("violet", 12)))
    images = {**held_out(), "": pictures("green", 10), "golden": pictures("green", 2, start=50)}
    images["amber"] = [*images["amber"], picture("amber", 0)]  # trained on
    candidate = run(repository, evaluation(repository, images, compare=1))
    result = evaluated(candidate)
    assert not candidate.published
    assert (result.revision, result.compared, result.name) == (2, 1, "")
    assert result.evaluation is not None
    assert result.evaluation.metrics.images == 60
    assert result.evaluation.metrics.accuracy > 0.9
    assert {row.value for row in result.evaluation.subgroups} == {"odd", "even"}
    assert result.evaluation.unknown is not None
    assert result.evaluation.unknown.strangers == 12
    assert result.lacking == {"golden": 2}
    assert result.repeated == 1
    assert result.comparison is not None
    assert result.comparison.images == 60
    assert EvaluationSets(repository, "m").names() == []


def test_gate_rejects_a_change_that_loses_on_the_set(repository: Repository) -> None:
    """It is published as rejected, names the set, and the old revision serves."""
    store(repository, max_drop=0.05)
    candidate = run(repository, change(repository, "add_examples", "amber", mislabelled()))
    assert candidate.rejected is not None
    assert candidate.rejected.reason == "GATE_FAILED"
    assert "accuracy on the evaluation set 'held-out' (60 images of 3 labels) dropped by" in (
        candidate.rejected.message
    )
    assert "the limit is 5.0" in candidate.rejected.message
    assert repository.serving("m") == 1
    result = EvaluationSets(repository, "m").result("held-out", 2)
    assert result.failure in candidate.rejected.message
    assert (result.compared, result.revision) == (1, 2)


@pytest.mark.parametrize("max_drop", [None, 1.0])
def test_set_within_its_limit_lets_a_change_serve(
    repository: Repository, max_drop: float | None
) -> None:
    """The same change serves beside a set without a gate, or with a wide limit."""
    store(repository, max_drop=max_drop)
    run(repository, change(repository, "add_examples", "amber", mislabelled()))
    assert repository.serving("m") == 2
    result = EvaluationSets(repository, "m").result("held-out", 2)
    assert result.comparison is not None
    assert result.comparison.drop > 0.1


def test_dry_run_tells_the_verdict_of_the_set(repository: Repository) -> None:
    """validate_only has the failure and a finding, and stores no result."""
    store(repository, max_drop=0.05)
    job = change(repository, "add_examples", "amber", mislabelled(), validate_only=True)
    result = run(repository, job).result
    assert any("'held-out'" in failure for failure in result.gate_failures)
    assert "evaluation_set" in {finding.kind for finding in result.findings}
    assert [row.revision for row in EvaluationSets(repository, "m").results("held-out")] == [1]


def test_each_of_two_sets_judges(repository: Repository) -> None:
    """The set of one label passes, the other fails; both results are stored."""
    store(repository, "narrow", images=held_out(["crimson"]), max_drop=0.05)
    store(repository, "wide", max_drop=0.05)
    candidate = run(repository, change(repository, "add_examples", "amber", mislabelled()))
    assert candidate.rejected is not None
    assert "'wide'" in candidate.rejected.message
    assert "'narrow'" not in candidate.rejected.message
    sets = EvaluationSets(repository, "m")
    assert not sets.result("narrow", 2).failure
    assert sets.result("wide", 2).failure


def test_set_of_labels_that_nobody_has_judges_nothing(repository: Repository) -> None:
    """It is stored, has no metrics, and lets changes pass until the model has the label."""
    result = store(repository, images=held_out(["violet"]), max_drop=0.0)
    assert result.evaluation is None
    assert result.lacking == {"violet": 20}
    run(repository, change(repository, "add_class", "violet", pictures("violet", 12)))
    assert repository.serving("m") == 2
    after = EvaluationSets(repository, "m").result("held-out", 2)
    assert after.evaluation is not None
    assert after.evaluation.metrics.images == 20
    assert after.comparison is None


def test_set_follows_a_rename_and_a_rollback(repository: Repository) -> None:
    """After a rename the gate still judges the label, also of a revision before the rename."""
    store(repository, max_drop=0.05)
    renamed = run(repository, change(repository, "rename_class", "amber", new_label="ochre"))
    assert renamed.rejected is None
    sets = EvaluationSets(repository, "m")
    comparison = sets.result("held-out", 2).comparison
    assert comparison is not None
    assert (comparison.images, comparison.drop) == (60, 0.0)
    spoilt = run(repository, change(repository, "add_examples", "ochre", mislabelled()))
    assert spoilt.rejected is not None
    repository.set_serving("m", 1, why="rollback")
    spoilt = run(repository, change(repository, "add_examples", "amber", mislabelled()))
    assert spoilt.rejected is not None
    assert "60 images of 3 labels" in spoilt.rejected.message


def test_removed_label_does_not_count(repository: Repository) -> None:
    """Images of the removed label are unknown images of the new revision."""
    store(repository, max_drop=0.0)
    assert run(repository, change(repository, "remove_class", "crimson")).rejected is None
    result = EvaluationSets(repository, "m").result("held-out", 2)
    assert result.lacking == {"crimson": 20}
    assert result.comparison is not None
    assert result.comparison.images == 40


def test_images_of_a_set_are_not_trained_on(repository: Repository) -> None:
    """AddExamples skips them and names the set; alone they are too few."""
    store(repository)
    own = pictures("amber", 3, start=FRESH)
    job = change(repository, "add_examples", "amber", [*own, picture("amber", 500)])
    result = run(repository, job).result
    assert result.images_used == 1
    assert {image.reason for image in result.skipped} == {"IN_EVALUATION_SET"}
    assert len(result.skipped) == 3
    with pytest.raises(NotReady, match=r"0 usable images.*evaluation set 'held-out' has it"):
        run(repository, change(repository, "add_examples", "amber", own))


def test_trained_images_are_not_judged(repository: Repository) -> None:
    """Images that a later fit trained on are left out of the judgement, and counted."""
    store(repository)
    both = {label: pictures(label, 12) for label in LABELS}
    both["amber"] += pictures("amber", 5, start=FRESH)
    tiny.publish(repository, "m", tiny.embed_pictures(both))
    result = evaluated(run(repository, evaluation(repository, {}, name="held-out")))
    assert (result.revision, result.repeated) == (2, 5)
    assert result.evaluation is not None
    assert result.evaluation.metrics.images == 55


@pytest.mark.parametrize("stored", [True, False])
def test_set_judges_another_backbone_only_with_its_images(
    repository: Repository, stored: bool
) -> None:
    """With images it is embedded again; without, its gate rejects and tells what to do."""
    store(repository, max_drop=0.05)
    other = tiny.saturating_backbone_model()
    info = replace(tiny.backbone_info(other), name="other", identity="other", expected=None)
    repository.put_backbone(other, info)
    images = {label: pictures(label, 12) for label in LABELS}
    manifest = tiny.publish(repository, "m", tiny.embed_pictures(images))
    moved = replace(
        manifest, backbone=info.digest, backbone_info=repository.backbone_info_digest(info.digest)
    )
    (repository.root / "models/m/2/manifest.json").write_bytes(to_json(moved))
    if not stored:
        for digest in repository.stored("images"):
            (repository.root / repository.key("images", digest)).unlink()
    candidate = run(repository, change(repository, "retrain", ""))
    sets = EvaluationSets(repository, "m")
    assert (sets.get("held-out").shards(info.digest) is not None) == stored
    if stored:
        assert candidate.rejected is None
        assert sets.result("held-out", 3).evaluation is not None
    else:
        assert candidate.rejected is not None
        assert "60 images of it are not stored" in candidate.rejected.message
        assert "store it again with its images" in candidate.rejected.message


def test_repeated_steps_store_one_set(repository: Repository) -> None:
    """A step that is repeated after a kill gives the same set and result."""
    job = evaluation(repository, held_out(), name="held-out")
    first = evaluated(run(repository, job, "operation"))
    before = EvaluationSets(repository, "m").get("held-out")
    again = evaluated(run(repository, job, "operation"))
    assert EvaluationSets(repository, "m").get("held-out") == before
    assert replace(again, created=first.created) == first
    with pytest.raises(AlreadyExists, match="has an evaluation set 'held-out' already"):
        run(repository, job, "another")


def test_result_that_a_kill_lost_is_made_again(repository: Repository) -> None:
    """A worker that dies after the publication leaves no revision without its result."""
    store(repository)
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    job = change(repository, "add_examples", "amber", pictures("amber", 4, start=100))
    new = trainer.embed(job, ignore)
    trainer.solve(job, new, "operation")
    sets = EvaluationSets(repository, "m")
    first = sets.result("held-out", 2)
    (repository.root / "models/m/evaluations/held-out/2.json").unlink()
    assert trainer.solve(job, new, "operation").result.revision == 2
    again = sets.result("held-out", 2)
    assert replace(again, created=first.created) == first


def test_gc_keeps_the_files_of_a_set_until_it_is_deleted(repository: Repository) -> None:
    """Its shards and images are retained, and fsck finds no orphans and no errors."""
    store(repository)
    clean = [problem for problem in check(repository) if "orphaned" in problem.text]
    assert clean == []
    assert collect(repository, spare_seconds=-1).removed == ()
    EvaluationSets(repository, "m").delete("held-out")
    removed = [each.kind for each in collect(repository, spare_seconds=-1).removed]
    assert (removed.count("shard"), removed.count("image")) == (3, 60)


def test_gc_deletes_results_of_deleted_revisions(repository: Repository) -> None:
    """The results of revisions that remain stay."""
    store(repository)
    for number in range(2):
        new = pictures("amber", 1, start=100 + number)
        run(repository, change(repository, "add_examples", "amber", new))
    removed = [each.path for each in collect(repository, keep=1, spare_seconds=-1).removed]
    assert "models/m/evaluations/held-out/1.json" in removed
    assert [row.revision for row in EvaluationSets(repository, "m").results("held-out")] == [3]


def test_gc_refuses_to_erase_an_image_of_a_set(repository: Repository) -> None:
    """It names the set that has the example."""
    store(repository)
    stored = EvaluationSets(repository, "m").get("held-out")
    (ref, *_) = stored.embedded[0].shards
    digest = repository.shard(ref.digest).digests[0].tobytes().hex()
    refused = collect(repository, erase=[digest]).refused
    assert refused[0] == (
        "the evaluation set 'held-out' of 'm' has an example to erase: delete the set"
    )


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda root: next((root / "exemplars").glob("*")).unlink(), "is missing|not stored"),
        (lambda root: _write(root, "set.json", b"{}"), "set.json cannot be used"),
        (lambda root: _write(root, "1.json", b"{}"), "1.json cannot be used"),
    ],
)
def test_fsck_finds_damage(
    repository: Repository, damage: Callable[[Path], None], text: str
) -> None:
    """A missing shard, a damaged set and a damaged result are errors."""
    store(repository)
    damage(repository.root)
    errors = [problem for problem in check(repository) if problem.severity == "error"]
    assert errors
    assert any(re.search(text, problem.text) for problem in errors)


def _write(root: Path, name: str, content: bytes) -> None:
    (root / "models/m/evaluations/held-out" / name).write_bytes(content)


def test_checks_before_anything_is_stored(repository: Repository) -> None:
    """Missing revision, taken name, unknown set and the limit of a stored set are refused."""
    store(repository)
    images = held_out(["amber"], 1)

    def checked(job: Job, *, complete: bool = True) -> None:
        check_evaluation(repository, job, "operation", complete=complete)

    with pytest.raises(NotFound, match="no revision 'models/m/revisions/9'"):
        checked(evaluation(repository, images, revision=9))
    with pytest.raises(AlreadyExists, match="an evaluation set 'held-out' already"):
        checked(evaluation(repository, images, name="held-out"))
    with pytest.raises(AlreadyExists, match="an evaluation set 'held-out' already"):
        checked(evaluation(repository, {}, name="held-out", max_drop=0.1), complete=False)
    with pytest.raises(NotFound, match="evaluationSets/other"):
        checked(evaluation(repository, {}, name="other"))
    with pytest.raises(InvalidInput, match="must be 1 to 63 of a-z"):
        checked(evaluation(repository, images, name="../m"))
    checked(evaluation(repository, {}, name="held-out"))
    checked(evaluation(repository, {}, name="other"), complete=False)
