"""``topwork evaluate`` with a repository."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.evaluation_sets import EvaluationSets
from topwork.bundle.store import Repository
from topwork.cli import main

LABELS = ("amber", "blue", "crimson", "green")
FRESH = 1000
"""Index of the first picture that was not trained on."""

Command = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository whose second revision has a class more than the first."""
    made = tiny.repository(tmp_path_factory.mktemp("evaluate") / "repository")
    five = {label: pictures(label, 20) for label in (*LABELS, "violet")}
    tiny.publish(made, "colours", tiny.embed_pictures(five))
    return made.root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return class folders of 8 new pictures of each class of the first revision."""
    return folders(tmp_path / "data", dict.fromkeys(LABELS, 8))


def folders(root: Path, counts: dict[str, int], *, start: int = FRESH) -> Path:
    """Write pictures into class folders."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(start, start + count):
            (root / label / f"{number}.png").write_bytes(picture(label, number))
    return root


@pytest.fixture
def evaluate(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs the command and returns exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        line = ["topwork", "evaluate", "--repository", repository, "colours", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, line)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def evaluated(evaluate: Command) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the command with --json and returns the object."""

    def run(*arguments: object) -> dict[str, Any]:
        status, out, err = evaluate("--json", *arguments)
        assert (status, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    return run


def test_numbers_are_those_of_the_model(
    evaluated: Callable[..., dict[str, Any]], data: Path, repository: Path
) -> None:
    """Accuracy and confusion are those of the answers of ``topwork.open``."""
    import topwork

    found = evaluated(data, "--revision", 1)
    model = topwork.open(repository, "colours", revision=1)
    files = sorted(data.rglob("*.png"))
    best = [result.predictions[0].label for result in model.predict(files)]
    right = sum(label == path.parent.name for label, path in zip(best, files, strict=True))
    assert (found["images"], found["accuracy"]) == (32, right / 32)
    assert found["confusion"]["labels"] == list(LABELS)
    assert [sum(row) for row in found["confusion"]["counts"]] == [8] * 4
    assert found["notes"] == found["left_out"] == found["skipped"] == found["subgroups"] == []
    assert found["comparison"] is None
    assert found["unknown"]["detected"] is None


def test_tables_name_every_part(evaluate: Command, data: Path) -> None:
    """Facts, labels, and the comparison."""
    status, out, err = evaluate(data, "--revision", 2, "--compare", 1)
    assert status == 0
    assert "colours, revision 2" in out
    assert "mean recall" in out
    assert all(label in out for label in LABELS)
    assert err == "There is no photo of 1 class: 'violet'\n"


def test_training_photos_are_left_out(
    evaluated: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Their number is a note; new photos are evaluated."""
    data = folders(tmp_path / "old", dict.fromkeys(LABELS, 2), start=0)
    (data / "amber" / "new.png").write_bytes(picture("amber", FRESH))
    found = evaluated(data, "--revision", 1)
    assert found["images"] == 1
    assert "8 photos left out: in the training set, exactly or nearly" in found["notes"]


def test_training_photos_alone_are_refused(evaluate: Command, tmp_path: Path) -> None:
    """There is nothing honest to say about them."""
    data = folders(tmp_path / "old", dict.fromkeys(LABELS, 2), start=0)
    status, out, err = evaluate(data, "--revision", 1)
    assert (status, out) == (1, "")
    assert "can be evaluated; 8 photos left out: in the training set" in err


def test_strangers_and_lacking_labels_count_as_unknown(
    evaluated: Callable[..., dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    """The note names the labels, with the model's closest one."""
    (data / "green").rename(data / "greens")
    strangers = folders(tmp_path / "others", {"white": 3})
    found = evaluated(data, "--revision", 1, "--strangers", strangers)
    assert found["images"] == 24
    assert found["unknown"]["detected"]["images"] == 11
    assert found["unknown"]["auroc"] is not None
    assert found["notes"][0] == (
        "8 photos of classes that revision 1 lacks count as unknown images: 'greens' 8 "
        "(close to 'green')"
    )
    assert "no photo of 1 class: 'green'" in found["notes"][1]


def test_unusable_photos_are_skipped(evaluated: Callable[..., dict[str, Any]], data: Path) -> None:
    """An unreadable image and a second copy; an empty folder and a text are left out."""
    (data / "amber" / "broken.png").write_bytes(b"\0no image")
    (data / "amber" / "copy.png").write_bytes(picture("amber", FRESH))
    (data / "empty").mkdir()
    (data / "notes.txt").write_text("text")
    found = evaluated(data, "--revision", 1)
    assert found["images"] == 32
    assert [each["image"] for each in found["skipped"]] == ["amber/broken.png", "amber/copy.png"]
    assert {group["reason"]: group["count"] for group in found["left_out"]} == {
        "text": 1,
        "empty": 1,
    }
    assert found["notes"][0].startswith("2 photos skipped, the first is amber/broken.png: ")


def test_columns_of_a_manifest_are_subgroups(
    evaluated: Callable[..., dict[str, Any]], data: Path
) -> None:
    """All other columns, but not one of identifiers."""
    rows = [
        f"{path.relative_to(data)},{path.parent.name},{('x', 'y')[number % 2]},{number}"
        for number, path in enumerate(sorted(data.rglob("*.png")))
    ]
    manifest = data / "photos.csv"
    manifest.write_text("\n".join(["path,label,camera,id", *rows]))
    found = evaluated(manifest, "--revision", 1)
    groups = [
        (row["column"], row["value"], row["accuracy"]["images"]) for row in found["subgroups"]
    ]
    assert groups == [("camera", "x", 16), ("camera", "y", 16)]
    assert found["notes"] == ["The column 'id' has more than 20 values: it is no subgroup"]


def test_comparison_has_both_revisions(
    evaluated: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """On the photos of the labels of both."""
    data = folders(tmp_path / "five", dict.fromkeys((*LABELS, "violet"), 5))
    found = evaluated(data, "--compare", 1)
    comparison = found["comparison"]
    assert (found["revision"], found["images"]) == (2, 25)
    assert (comparison["revision"], comparison["images"]) == (1, 20)
    assert comparison["added"] == ["violet"]
    assert sorted(comparison["per_class"]) == list(LABELS)


def test_page_is_written(evaluate: Command, data: Path, tmp_path: Path) -> None:
    """The folder of the page must exist, which is checked first."""
    page = tmp_path / "page.html"
    assert evaluate(data, "--revision", 1, "--html", page)[0] == 0
    assert "Topwork evaluation" in page.read_text()
    status, _, err = evaluate(data, "--html", tmp_path / "no" / "page.html")
    assert status == 1
    assert "there is no folder" in err


def test_photos_without_classes_are_refused(evaluate: Command, tmp_path: Path) -> None:
    """The error has the reason."""
    (tmp_path / "photo.png").write_bytes(picture("amber", FRESH))
    status, _, err = evaluate(tmp_path)
    assert status == 1
    assert "no labelled photo; left out: 1 file outside of class folders" in err


def test_set_is_stored_in_a_repository(
    evaluate: Command, evaluated: Callable[..., dict[str, Any]], data: Path, repository: Path
) -> None:
    """--name stores the photos as a set once; later evaluations need no DATA."""
    stored = evaluated(data, "--name", "held-out", "--max-drop", 0.5, "--compare", 1)
    assert (stored["evaluation_set"], stored["images"]) == ("held-out", 32)
    assert stored["comparison"]["images"] == 32
    again = evaluated("--name", "held-out", "--revision", 1)
    assert (again["revision"], again["images"]) == (1, 32)
    sets = EvaluationSets(Repository(repository), "colours")
    assert [row.revision for row in sets.results("held-out")] == [2, 1]
    assert len(Repository(repository).stored("images")) == 32
    status, _, err = evaluate(data, "--name", "held-out")
    assert (status, err) == (
        1,
        "error: model 'colours' has an evaluation set 'held-out' already: delete it, or choose "
        "another name\n",
    )
    sets.delete("held-out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--name", "x", "--max-drop", "nan"), "max_drop is nan; it must be 0 to 1"),
        (("--name", "x", "--max-drop", -0.1), "max_drop is -0.1; it must be 0 to 1"),
        (("--max-drop", 0.1), "--max-drop needs --name and DATA"),
        (("--name", "../x"), "must be 1 to 63 of a-z"),
        (("--name", "x", "--html", "page.html"), "evaluate DATA without --name"),
    ],
)
def test_invalid_options_of_a_set_are_refused(
    evaluate: Command, data: Path, options: tuple[object, ...], message: str
) -> None:
    """One sentence, and nothing is stored."""
    status, out, err = evaluate(data, *options)
    assert (status, out) == (1, "")
    assert message in err
