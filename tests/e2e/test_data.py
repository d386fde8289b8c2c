"""Training on data in several layouts, with the commands of a user."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import photo_sets, tiny
from support.pictures import pictures

from topwork.bundle.store import Repository
from topwork_trainer import commands
from topwork_trainer.backbones import DEFAULT, BackboneChoice

LABELS = ("amber", "blue", "crimson")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository that stores the tiny backbone as the default one."""
    model = tiny.backbone_model()
    identity = BackboneChoice(name=DEFAULT).identity()
    Repository(tmp_path / "repository").put_backbone(
        model, replace(tiny.backbone_info(model), identity=identity)
    )
    return tmp_path / "repository"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Return a manifest of 12 photos of each label, from four patients."""
    rows = []
    for label in LABELS:
        (tmp_path / label).mkdir()
        for number, content in enumerate(pictures(label, 12)):
            (tmp_path / label / f"{number}.png").write_bytes(content)
            rows.append((f"{label}/{number}.png", label, f"patient {number % 4}"))
    (tmp_path / "photos.csv").write_text(photo_sets.csv(rows, "path,label,group"))
    return tmp_path / "photos.csv"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a zip archive of 8 other photos of each label."""
    members = {
        f"more/{label}/{number}.png": content
        for label in LABELS
        for number, content in enumerate(pictures(label, 8, start=100))
    }
    return photo_sets.zip_of(tmp_path / "more.zip", members)


def test_fit_on_a_manifest_with_groups_and_a_zipped_test_set(
    repository: Path, manifest: Path, archive: Path
) -> None:
    """The JSON has the groups, the cross-validated accuracy and that on the test set."""
    (fitted,) = commands.run(
        "topwork_trainer", "fit", manifest, "--test", archive, "--model", "m",
        "--repository", repository, "--no-cache", "--json",
    )  # fmt: skip
    assert fitted["labels"] == list(LABELS)
    assert fitted["images"] == 36
    assert "Folds keep groups together (4 groups)" in fitted["notes"]
    (tested,) = fitted["held_out"]
    assert (tested["split"], tested["images"], tested["related"]) == ("more.zip", 24, 0)
    assert tested["accuracy"] > 0.9


def test_audit_of_an_archive(repository: Path, archive: Path) -> None:
    """The photos of an archive are audited like those of a folder."""
    (audited,) = commands.run(
        "topwork_trainer", "audit", archive, "--repository", repository, "--no-cache", "--json"
    )
    assert audited["classes"] == dict.fromkeys(LABELS, 8)


def test_bad_manifest_is_one_sentence(repository: Path, manifest: Path) -> None:
    """A photo with two labels ends the command with one line and status 1."""
    with manifest.open("a") as file:
        file.write("blue/0.png,amber,patient 0\n")
    fit = ("topwork_trainer.cli", "fit", str(manifest), "--model", "m", "--no-cache")
    completed = subprocess.run(
        [sys.executable, "-m", *fit, "--repository", str(repository)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert completed.returncode == 1
    (line,) = completed.stderr.strip().split("\n")
    assert "blue/0.png has two labels: 'blue' (photos.csv, line 14) and 'amber'" in line
