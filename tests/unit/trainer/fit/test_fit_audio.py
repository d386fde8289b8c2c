"""Fit of audio: the kind is found by the files, and the model is that of the service."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from support import sounds

from topwork.bundle.store import Repository
from topwork_trainer.cli.commands import cli


def run(*arguments: object) -> Result:
    """Run ``topwork-train``."""
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of recordings of four labels."""
    for label in sounds.LABELS[:4]:
        (tmp_path / "data" / label).mkdir(parents=True)
        for number, file in enumerate(sounds.recordings(label, 15)):
            (tmp_path / "data" / label / f"{number:02}.wav").write_bytes(file)
    return tmp_path / "data"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with an encoder of the service's tests' windows."""
    onnx.save(sounds.waveform_model(), tmp_path / "model.onnx")
    root = tmp_path / "repository"
    options = ("--audio-rate", sounds.RATE, "--window", 0.5, "--hop", 0.25, "--max-seconds", 10)
    done = run(
        *("backbone", "add", "log-mel", "--onnx", tmp_path / "model.onnx", *options),
        *("--repository", root),
    )
    assert done.exit_code == 0, done.output
    return root


def test_fit_of_recordings(data: Path, repository: Path, tmp_path: Path) -> None:
    """Twice with a cache: the same bytes; the output counts recordings."""
    place = ("--repository", repository, "--cache", tmp_path / "cache")
    command = ("fit", data, "--backbone", "log-mel", *place)
    first = run(*command, "--model", "first", "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert (found["audio_rate"], found["image_size"], found["images"]) == (8000, None, 60)
    assert found["accuracy"] > 0.9
    second = run(*command, "--model", "second")
    assert second.exit_code == 0, second.output
    assert "60 recordings" in second.output
    assert "log-mel at 8000 Hz" in second.output
    made = Repository(repository)
    heads = [made.head(made.manifest(model, 1)) for model in ("first", "second")]
    assert heads[0] == heads[1]


def test_a_fit_equals_what_the_service_learns(data: Path, repository: Path) -> None:
    """Digests and embeddings of the same files."""
    done = run("fit", data, "--backbone", "log-mel", "--repository", repository, "--model", "m")
    assert done.exit_code == 0, done.output
    made = Repository(repository)
    fitted = made.exemplars(made.manifest("m", 1).exemplars)
    served = sounds.exemplars({label: sounds.recordings(label, 15) for label in sounds.LABELS[:4]})
    assert fitted.digests.tobytes() == served.digests.tobytes()
    assert fitted.fingerprints.tobytes() == served.fingerprints.tobytes()
    assert abs(fitted.embeddings - served.embeddings).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "recordings need a backbone that takes them"),
        (["--backbone", "log-mel", "--image-size", "64"], "--image-size needs photos"),
        (["--backbone", "log-mel", "--kind", "text"], "classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    data: Path, repository: Path, options: list[str], message: str
) -> None:
    """The error says what recordings need."""
    done = run("fit", data, "--model", "m", "--repository", repository, *options)
    assert done.exit_code != 0
    assert message in str(done.exception)
