"""Fit on embeddings: the revision that the server would learn, and refused settings and data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import spaces

import topwork
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.learning.learn import learn
from topwork_trainer.cli.commands import cli
from topwork_trainer.fit.fit import FitConfig, FitResult, fit

RECIPE = Recipe(head="logistic", normalisation="sqrt_l2")


def config(data: Path, root: Path, **settings: Any) -> FitConfig:
    """Return the settings of a fit."""
    return FitConfig(data=data, model="points", repository=root, recipe=RECIPE, **settings)


def run(settings: FitConfig) -> FitResult:
    """Run a fit without progress."""
    return fit(settings, lambda *_: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a file of 15 labelled embeddings of each of three labels."""
    labels = [label for label in "abc" for _ in range(15)]
    rows = np.concatenate([spaces.rows(label, 15) for label in "abc"])
    path = tmp_path / "points.npz"
    np.savez(path, embeddings=rows, labels=labels, space="points-v1")
    return path


def test_fit_equals_what_the_server_learns(data: Path, tmp_path: Path) -> None:
    """Head and data digest are those of the same exemplars; it serves, and can be opened."""
    result = run(config(data, tmp_path / "repository", cache=tmp_path / "cache"))
    repository = Repository(tmp_path / "repository")
    made = spaces.exemplars({label: [*spaces.rows(label, 15)] for label in "abc"})
    expected = Repository(tmp_path / "other")
    manifest = spaces.publish(expected, "points", made)
    assert learn(made, seed=0, recipe=RECIPE).metrics == result.metrics
    assert repository.head(result.manifest) == expected.head(manifest)
    assert result.manifest.data_digest == manifest.data_digest
    assert (result.backbone.preprocess, result.backbone.digest) == (spaces.SPEC, manifest.backbone)
    assert not (tmp_path / "cache").exists()
    found = topwork.open(tmp_path / "repository", "points").predict(spaces.rows("b", 2, first=30))
    assert [each.predictions[0].label for each in found] == ["b", "b"]
    assert b"points-v1" in Path(result.report).read_bytes()


def test_folders_need_the_name_of_the_space(tmp_path: Path) -> None:
    """Each class is a folder; images kept are the rows."""
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        np.save(tmp_path / "data" / label / "rows.npy", spaces.rows(label, 12))
    with pytest.raises(InvalidInput, match="name what computed the embeddings: --space"):
        run(config(tmp_path / "data", tmp_path / "r"))
    result = run(config(tmp_path / "data", tmp_path / "r", space="points-v1", keep_images=True))
    assert result.manifest.labels == ("a", "b")
    assert len(Repository(tmp_path / "r").stored("images")) == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "auto"}, "--backbone needs photos, and .*points.npz has embeddings"),
        ({"image_size": 64}, "--image-size needs photos"),
        ({"precision": "int8"}, "--precision needs photos"),
        ({"test": Path("x")}, "--test needs photos"),
        ({"space": "other"}, "the data has the space 'points-v1', not 'other'"),
        ({"classes": ["a"]}, "at least two are needed"),
        ({"classes": ["a", "z"]}, "'z' has 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    data: Path, tmp_path: Path, settings: Mapping[str, Any], message: str
) -> None:
    """Nothing is stored."""
    with pytest.raises(InvalidInput, match=message):
        run(config(data, tmp_path / "r", **settings))
    assert not (tmp_path / "r").exists()


def test_space_is_for_embeddings(tmp_path: Path) -> None:
    """A fit on photos refuses it."""
    with pytest.raises(InvalidInput, match="--space needs embeddings"):
        run(config(tmp_path, tmp_path / "r", space="x"))


def test_bad_rows_are_left_out_with_the_value(data: Path, tmp_path: Path) -> None:
    """A row with NaN is named in the result and a finding of the audit."""
    with np.load(data) as loaded:
        rows, labels = loaded["embeddings"], loaded["labels"]
    rows[3, 2] = np.nan
    np.savez(data, embeddings=rows, labels=labels, space="points-v1")
    result = run(config(data, tmp_path / "r"))
    (skipped,) = result.skipped
    assert "points.npz[3]" in skipped.name
    assert "the value nan at 2" in skipped.message
    assert any("the value nan at 2" in finding.message for finding in result.findings)


def test_command_prints_the_space(data: Path, tmp_path: Path) -> None:
    """As text and as JSON, where the size of images is null."""
    fixed = ["--head", "logistic", "--normalisation", "l2", "--no-cache"]
    where = ["fit", str(data), "--model", "m", "--repository", str(tmp_path / "r")]
    done = CliRunner().invoke(cli, [*where, *fixed])
    assert done.exit_code == 0, done.output
    assert "embeddings of the space points-v1, 12 numbers" in done.output
    done = CliRunner().invoke(cli, [*where, *fixed, "--json"])
    assert json.loads(done.stdout.splitlines()[-1])["image_size"] is None
