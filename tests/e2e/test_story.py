"""Main workflow by subprocess: fit four classes, serve, classify, add the fifth, classify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from topwork.bundle.store import Repository
from topwork_trainer import commands
from topwork_trainer.commands import JsonRow
from topwork_trainer.data import scan
from topwork_trainer.demo.story import HELD_OUT_EVERY, split

LABELS = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]


@dataclass(frozen=True)
class Story:
    """Results of the workflow; rows of held-out photos are by their label."""

    repository: Path
    fitted: JsonRow
    added: JsonRow
    joint: JsonRow
    before: dict[str, list[JsonRow]]
    after: dict[str, list[JsonRow]]
    by_joint: dict[str, list[JsonRow]]


def _run_story(photos: Path, repository: Path, work: Path) -> Story:
    train, held_out = work / "train", work / "held-out"
    assert split(scan(photos), train, held_out) == LABELS
    fit = ("fit", train, "--repository", repository, "--no-cache", "--json")
    old = ",".join(LABELS[:-1])
    (fitted,) = commands.run("topwork_trainer", *fit, "--model", "flowers", "--classes", old)
    with commands.serving(repository, work / "log") as served:

        def ask(model: str) -> dict[str, list[JsonRow]]:
            options = ("--address", served.address, "--model", model, "--json")
            return {
                label: commands.run("topwork", "classify", *options, held_out / label)
                for label in LABELS
            }

        before = ask("flowers")
        options = ("--address", served.address, "--model", "flowers", "--label", LABELS[-1])
        (added,) = commands.run("topwork", "add-class", *options, "--json", train / LABELS[-1])
        after = ask("flowers")
        (joint,) = commands.run("topwork_trainer", *fit, "--model", "joint")
        commands.wait_for_model(served.address, "joint")
        by_joint = ask("joint")
    return Story(repository, fitted, added, joint, before, after, by_joint)


@pytest.fixture(scope="module")
def real(flower_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 5 x 140 real photos."""
    folder = tmp_path_factory.mktemp("real")
    for label in LABELS:
        (folder / label).mkdir()
        for photo in sorted((flower_photos / label).iterdir())[:140]:
            (folder / label / photo.name).symlink_to(photo)
    return folder


@pytest.fixture(scope="module", params=["rendered", "real"])
def story(
    request: pytest.FixtureRequest,
    new_repository: Callable[[], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """Run the workflow on rendered flowers, and on real photos if available."""
    photos: Path = request.getfixturevalue(request.param)
    return _run_story(photos, new_repository(), tmp_path_factory.mktemp("story"))


def _accuracy(rows_by_label: dict[str, list[JsonRow]], labels: list[str]) -> float:
    answers = [
        row["predictions"][0]["label"] == label for label in labels for row in rows_by_label[label]
    ]
    return float(sum(answers) / len(answers))


def test_five_classes_are_recognised(story: Story) -> None:
    """After AddClass at least 90 % of held-out photos get their label."""
    assert (
        len(story.after["daisy"]) * (HELD_OUT_EVERY - 1)
        == story.fitted["per_class"]["daisy"]["images"]
    )
    assert _accuracy(story.after, LABELS) >= 0.90


def test_old_classes_are_not_forgotten(story: Story) -> None:
    """Accuracy on the four old classes equals that of a full retrain."""
    assert _accuracy(story.after, LABELS[:-1]) == _accuracy(story.by_joint, LABELS[:-1])
    assert _accuracy(story.before, LABELS[:-1]) >= 0.90


def test_new_class_is_unknown_before_and_known_after(story: Story) -> None:
    """No photo of the fifth class gets its label before AddClass, most do after."""
    assert _accuracy(story.before, LABELS[-1:]) == 0
    assert _accuracy(story.after, LABELS[-1:]) >= 0.8


def test_added_class_gives_the_joint_solution(story: Story) -> None:
    """Probabilities after AddClass agree within 1e-5 with a fit on all classes."""
    for label in LABELS:
        for grafted, joint in zip(story.after[label], story.by_joint[label], strict=True):
            assert [prediction["label"] for prediction in grafted["predictions"]] == [
                prediction["label"] for prediction in joint["predictions"]
            ]
            for mine, theirs in zip(grafted["predictions"], joint["predictions"], strict=True):
                assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def test_answers_name_the_revision(story: Story) -> None:
    """Every row has its revision: 1 before AddClass, 2 after."""
    assert {row["revision"] for rows in story.before.values() for row in rows} == {1}
    assert {row["revision"] for rows in story.after.values() for row in rows} == {2}


def test_fit_and_add_class_print_documented_json(story: Story) -> None:
    """The JSON of fit and add-class has the documented keys and agrees with the manifest."""
    assert {"model", "revision", "labels", "accuracy", "accuracy_low", "accuracy_high",
            "per_class", "seconds"} <= story.fitted.keys()  # fmt: skip
    assert {"operation", "revision", "labels", "metrics"} <= story.added.keys()
    assert story.fitted["labels"] == LABELS[:-1]
    assert story.added["labels"] == LABELS
    manifest = Repository(story.repository).manifest("flowers", 2)
    assert manifest.parent == 1
    assert story.added["operation"] == f"operations/{manifest.operation}"
    metrics = story.added["metrics"]
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    assert metrics["accuracy"] == story.joint["accuracy"]
