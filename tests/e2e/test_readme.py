"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from topwork_trainer import commands

README = (Path(__file__).parents[2] / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_tour_and_python_example(
    new_repository: Callable[[], Path],
    rendered: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The tour's commands run in their order, and so does the Python example."""
    tour = next(block for block in _blocks("sh") if "topwork serve" in block)
    lines = [shlex.split(line, comments=True) for line in tour.replace("\\\n", " ").splitlines()]
    by_name = [line for line in lines if line and line[0] in {"topwork", "topwork-train"}]
    names = [line[1] for line in by_name]
    assert names == ["demo-data", "fit", "serve", "classify", "add-class", "classify", "describe"]
    (python,) = _blocks("python")
    (tmp_path / "photos").symlink_to(rendered)
    (tmp_path / "repository").symlink_to(new_repository())
    monkeypatch.chdir(tmp_path)
    _run(by_name[1])
    with commands.serving(Path("repository"), tmp_path / "log") as served:
        monkeypatch.setenv("TOPWORK_CLASSIFY_ADDRESS", served.address)
        monkeypatch.setenv("TOPWORK_ADD_CLASS_ADDRESS", served.address)
        monkeypatch.setenv("TOPWORK_DESCRIBE_ADDRESS", served.address)
        assert "tulips" not in _run(by_name[3]).replace("photos/tulips", "").replace("tulips-", "")
        _run(by_name[4])
        assert "tulips 0." in _run(by_name[5])
        assert "tulips" in _run(by_name[6])
        # The example adds the class itself: it needs a model that lacks it.
        _run([*by_name[1][:4], "other", *by_name[1][5:]])
        commands.wait_for_model(served.address, "other")
        example = python.replace("127.0.0.1:50051", served.address).replace('"flowers"', '"other"')
        exec(compile(example, "README.md", "exec"), {})  # noqa: S102  # it is our own README
    said = capsys.readouterr().out
    assert "accuracy_after: " in said
    assert "tulips 0." in said


def test_limits_and_options_are_the_real_ones() -> None:
    """Every option of serve and fit that the tables name exists, and none is left out."""
    for package, command, heading in (
        ("topwork", "serve", "| `topwork serve` |"),
        ("topwork_trainer", "fit", "| `topwork-train fit DATA` |"),
    ):
        table = README[README.index(heading) :].split("\n\n")[0]
        shown = set(re.findall(r"`(--[a-z-]+)`", table))
        help_text = subprocess.run(
            [sys.executable, "-m", f"{package}.cli", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown == set(re.findall(r"^ +(--[a-z-]+)", help_text, flags=re.MULTILINE)) - {
            "--help"
        } | set(re.findall(r"/ (--no-[a-z-]+)", help_text))


def _run(line: list[str]) -> str:
    package = {"topwork": "topwork", "topwork-train": "topwork_trainer"}[line[0]]
    done = subprocess.run(
        [sys.executable, "-m", f"{package}.cli", *line[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
