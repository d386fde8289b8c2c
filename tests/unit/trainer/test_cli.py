"""Command line of the trainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from topwork.errors import InvalidInput
from topwork_trainer.cli import main
from topwork_trainer.cli.commands import cli
from topwork_trainer.fit.fit import FitConfig


def test_help_needs_no_torch() -> None:
    """Command line, fit and catalogue of backbones do not import torch; only an export does."""
    code = (
        "import sys; import topwork_trainer.cli.commands\n"
        "import topwork_trainer.fit.fit, topwork_trainer.backbones\n"
        "found = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(found & {'torch', 'torchvision'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_expected_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An expected error is printed to standard error without traceback; the exit status is 1."""
    arguments = ["fit", tmp_path / "none", "--model", "m", "--repository", tmp_path / "r"]
    monkeypatch.setattr(sys, "argv", ["topwork-train", *map(str, arguments)])
    with pytest.raises(SystemExit, match="1"):
        main()
    error = capsys.readouterr().err
    assert "is not a folder" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["fit --model m --repository r", "rank", "audit"])
def test_url_as_data_is_refused(command: str) -> None:
    """The error repeats a URL unchanged, with both slashes."""
    done = CliRunner().invoke(cli, [*command.split(), "https://example.org/photos"])
    assert done.exit_code == 2
    assert "'https://example.org/photos' is a URL, not a file or folder" in " ".join(
        done.output.split()
    )


@pytest.mark.parametrize(
    ("option", "pixels", "status"), [("", 64, 1), ("160", 160, 1), ("63", 0, 2), ("257", 0, 2)]
)
def test_preview_pixels_reach_the_fit(
    option: str, pixels: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 64 to 256; others are refused before anything is read."""
    asked = []

    def fit(config: FitConfig, _: object) -> None:
        asked.append(config.preview_pixels)
        raise InvalidInput("that is all", field="data")

    monkeypatch.setattr("topwork_trainer.fit.fit.fit", fit)
    given = ["--preview-pixels", option] if option else []
    command = ["fit", str(tmp_path), "--model", "m", "--repository", str(tmp_path / "r"), *given]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == status
    assert asked == ([pixels] if pixels else [])


def test_demo_data_says_that_it_is_rendered(tmp_path: Path) -> None:
    """The output says that the pictures are rendered and not photos."""
    done = CliRunner().invoke(cli, ["demo-data", str(tmp_path / "d"), "--images-per-label", "1"])
    assert done.exit_code == 0
    assert "rendered" in done.output
    assert "not photos" in done.output
    assert len(list((tmp_path / "d").glob("*/*.jpg"))) == 5


def test_demo_data_holds_out_every_fourth_picture(tmp_path: Path) -> None:
    """Every fourth picture is moved to a folder of the same name in the held-out folder."""
    photos, held_out = tmp_path / "photos", tmp_path / "held-out"
    options = ["--images-per-label", "8", "--held-out", str(held_out)]
    done = CliRunner().invoke(cli, ["demo-data", str(photos), *options])
    assert done.exit_code == 0
    moved = {path.relative_to(held_out) for path in held_out.rglob("*.jpg")}
    left = {path.relative_to(photos) for path in photos.rglob("*.jpg")}
    assert (len(moved), len(left), moved & left) == (10, 30, set())
    assert {path.parent.name for path in moved} == {path.parent.name for path in left}


@pytest.mark.parametrize("command", ["demo-data", "fetch flower_photos"])
def test_held_out_folder_inside_the_data_is_refused(tmp_path: Path, command: str) -> None:
    """It would become a class; the command refuses it before rendering or downloading."""
    photos = tmp_path / "photos"
    arguments = [*command.split(), str(photos), "--held-out", str(photos / "held-out")]
    done = CliRunner().invoke(cli, arguments)
    assert "must not be inside" in str(done.exception)
    assert not photos.exists()


def test_demo_refuses_an_unknown_new_class(tmp_path: Path) -> None:
    """If the class to add does not exist, the error lists the classes."""
    for label in ("a", "b", "c"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(5):
            (tmp_path / "data" / label / f"{index}.jpg").write_bytes(b"")
    done = CliRunner().invoke(
        cli, ["demo", str(tmp_path / "data"), "--new", "z", "--work", str(tmp_path / "work")]
    )
    assert "'z' must be one of at least three classes, which are: a, b, c" in str(done.exception)
    assert done.exit_code == 1
