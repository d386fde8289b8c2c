"""``topwork predict --out``: answers in a Parquet file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support import spaces, tiny
from support.pictures import picture

import topwork
from topwork.bundle.store import Repository
from topwork.cli import parquet_table
from topwork.cli.commands import cli
from topwork.errors import InvalidInput

NAMES = ["0.png", "1.png", "2.png"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with the model ``colours``."""
    return tiny.repository(tmp_path_factory.mktemp("table") / "repository")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three photos and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, label in zip(NAMES, ["blue", "green", "amber"], strict=True):
        (folder / name).write_bytes(picture(label, 70))
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


def predict(repository: Repository, *arguments: str | Path, model: str = "colours") -> Result:
    """Run the command."""
    options = ["predict", "--repository", str(repository.root), model]
    return CliRunner().invoke(cli, [*options, *map(str, arguments)])


@pytest.mark.parametrize("group_rows", [2, 10_000])
def test_rows_have_the_answers_of_the_opened_model(
    repository: Repository, photos: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    """Labels and probabilities are equal; an unreadable file is a row with an error."""
    monkeypatch.setattr(parquet_table, "GROUP_ROWS", group_rows)
    out = photos.parent / "part.parquet"
    done = predict(repository, photos, photos / "missing.png", "--out", out, "--top-k", "2")
    assert (done.exit_code, done.stdout) == (1, "")
    rows = pq.read_table(out).to_pylist()
    assert [Path(row["name"]).name for row in rows] == [*NAMES, "broken.jpg", "missing.png"]
    model = topwork.open(repository.root, "colours")
    for row, result in zip(rows, model.predict([photos / name for name in NAMES], top_k=2)):  # noqa: B905 # the others are errors
        shown = tuple(zip(row["labels"], row["probabilities"], strict=True))
        assert shown == result.predictions
        assert row["unknown_probability"] == result.unknown_probability
        assert row["digest"] == hashlib.sha256(Path(row["name"]).read_bytes()).hexdigest()
        assert (row["revision"], row["error"]) == (1, None)
    assert rows[3]["error"]
    assert rows[3]["labels"] == []
    assert rows[4]["error"] == "the file cannot be read: No such file or directory"
    assert rows[4]["digest"] is None


def test_pattern_is_expanded(repository: Repository, photos: Path) -> None:
    """A pattern gives its sorted matches; one that matches nothing is refused."""
    out = photos.parent / "part.parquet"
    assert predict(repository, photos / "[01].png", "--out", out).exit_code == 0
    assert [Path(name).name for name in pq.read_table(out)["name"].to_pylist()] == NAMES[:2]
    lines = predict(repository, photos.parent / "**" / "2.png", "--json").stdout.splitlines()
    assert [Path(json.loads(line)["image"]).name for line in lines] == ["2.png"]
    refused = predict(repository, photos / "*.gif", "--out", out)
    assert isinstance(refused.exception, InvalidInput)
    assert "nothing matches the pattern" in str(refused.exception)


def test_failure_leaves_the_former_file(
    repository: Repository, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced when all rows are written; no temporary file stays."""
    out = photos.parent / "part.parquet"
    out.write_bytes(b"former")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet_table, "_row", fail)
    assert predict(repository, photos, "--out", out).exit_code != 0
    assert out.read_bytes() == b"former"
    assert sorted(path.name for path in photos.parent.iterdir()) == ["part.parquet", "photos"]


def test_embeddings_have_rows_too(tmp_path: Path) -> None:
    """A model of embeddings classifies the rows of a .npy."""
    import numpy as np

    repository = spaces.repository(tmp_path / "repository")
    np.save(tmp_path / "rows.npy", spaces.rows("a", 3, first=60))
    out = tmp_path / "part.parquet"
    assert predict(repository, tmp_path / "rows.npy", "--out", out, model="points").exit_code == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["labels"][0] for row in rows] == ["a"] * 3
    assert len({row["digest"] for row in rows}) == 3
