"""Commands ``backbone add`` and ``backbones``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from support import onnx_files, sounds, text_encoders

from topwork.bundle.store import Repository
from topwork_trainer import backbones
from topwork_trainer.cli.commands import cli
from topwork_trainer.ranking.rank import candidates


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return an ONNX file of a classifier."""
    return onnx_files.save(onnx_files.classifier(), tmp_path / "own.onnx")


def run(*arguments: object) -> Result:
    """Run ``topwork-train``."""
    return CliRunner().invoke(cli, [*map(str, arguments)])


def test_add_stores_an_onnx_file(file: Path, tmp_path: Path) -> None:
    """The command prints what it found, and the repository has the backbone under its name."""
    root = tmp_path / "repository"
    done = run("backbone", "add", "own", "--onnx", file, "--repository", root, "--mean", "0.5")
    assert done.exit_code == 0, done.output
    digest = Repository(root).added_backbones()["own"]
    assert f"own is stored as {digest[:12]}: input 32, embedding 8, fp32" in done.output
    assert "pixels: 0 to 1, minus 0.5, divided by 1 (as told)" in done.output
    assert "ms per image" in done.output
    assert candidates(Repository(root))[-1] == "own"


def test_add_stores_a_text_encoder(tmp_path: Path) -> None:
    """A file with its tokenizer and a folder of both are the same backbone."""
    files = text_encoders.folder(tmp_path / "encoder", text_encoders.encoder())
    command = ("backbone", "add", "words", "--repository", tmp_path / "r", "--max-tokens", 32)
    done = run(*command, "--onnx", files / "model.onnx", "--tokenizer", files / "tokenizer.json")
    assert done.exit_code == 0, done.output
    assert "texts up to 32 tokens, of a vocabulary of 51" in done.output
    assert "input 32 tokens, embedding 16, fp32, licence unknown" in done.output
    again = json.loads(run(*command, "--encoder", files, "--json").output)
    assert (again["max_tokens"], again["image_size"], again["width"]) == (32, None, 16)
    assert Repository(tmp_path / "r").added_backbones() == {"words": again["digest"]}
    listed = json.loads(run("backbones", "words", "--repository", tmp_path / "r", "--json").stdout)[
        "backbones"
    ]
    assert [(row["name"], row["max_tokens"]) for row in listed] == [("words", 32)]


def test_add_stores_an_encoder_of_audio(tmp_path: Path) -> None:
    """With the windows that the options say."""
    onnx.save(sounds.waveform_model(), tmp_path / "model.onnx")
    done = run(
        *("backbone", "add", "log-mel", "--repository", tmp_path / "r", "--onnx"),
        *(tmp_path / "model.onnx", "--audio-rate", 8000, "--window", 0.5, "--json"),
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["audio_rate"], found["image_size"], found["width"]) == (8000, None, 32)
    assert "windows of 0.5 s every 0.5 s; recordings up to 60 s" in found["notes"]
    listed = run("backbones", "log-mel", "--repository", tmp_path / "r")
    assert "8000 Hz" in listed.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "t"], "--tokenizer needs --onnx"),
        (["--encoder", ".", "--onnx", "own.onnx"], "graph and tokenizer in one folder"),
        (["--encoder", ".", "--range", "1"], "--range is for images"),
        (["--encoder", ".", "--pooling", "both"], "the pooling of texts is mean or cls"),
        (["--onnx", "own.onnx", "--normalise"], "--normalise needs --tokenizer or --encoder"),
        (["--max-tokens", "8"], "--max-tokens needs --onnx"),
        (["--audio-rate", "8000"], "--audio-rate needs --onnx"),
        (["--onnx", "own.onnx", "--window", "1"], "--window needs --audio-rate"),
        (["--onnx", "own.onnx", "--audio-rate", "8000", "--mean", "1"], "--mean is for images"),
        (["--encoder", ".", "--audio-rate", "8000"], "--audio-rate is for audio"),
    ],
)
def test_add_refuses_options_of_another_kind(
    file: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    """Options of images and of texts are not mixed."""
    monkeypatch.chdir(file.parent)
    Path("t").touch()
    done = run("backbone", "add", "own", "--repository", "r", *options)
    assert message in str(done.exception)


def test_add_moves_a_name_only_if_asked(file: Path, tmp_path: Path) -> None:
    """Another graph under a taken name is an error without --replace; the same graph is not."""
    command = ("backbone", "add", "own", "--onnx", file, "--repository", tmp_path / "r", "--json")
    first = json.loads(run(*command).output)
    assert json.loads(run(*command).output)["digest"] == first["digest"]
    refused = run(*command, "--mean", "0.5,0.4,0.3")
    assert "another backbone 'own'" in str(refused.exception)
    moved = json.loads(run(*command, "--mean", "0.5,0.4,0.3", "--replace").output)
    assert Repository(tmp_path / "r").added_backbones() == {"own": moved["digest"]}
    assert moved["digest"] != first["digest"]
    assert (moved["width"], moved["image_size"], moved["precision"]) == (8, 32, "fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["auto", "--onnx", "own.onnx"], "'auto' is no name"),
        (["a/b", "--onnx", "own.onnx"], "model name 'a/b' must be"),
        (["own", "--onnx", "own.onnx", "--weights", "own.onnx"], "--weights is not needed"),
        (["efficientnet_lite0", "--image-size", "64"], "--image-size needs --onnx"),
        (["efficientnet_lite0", "--range", "255"], "--range needs --onnx"),
        (["own", "--onnx", "own.onnx", "--mean", "1,2"], "neither one number nor three"),
    ],
)
def test_add_refuses_unusable_options(
    arguments: list[str], message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which option does not fit, and nothing is stored."""
    monkeypatch.chdir(file.parent)
    done = run("backbone", "add", *arguments, "--repository", "r")
    assert done.exit_code != 0
    assert message in f"{done.exception}{done.output}"
    assert not Repository(file.parent / "r").added_backbones()


def test_adding_an_onnx_file_needs_no_torch(file: Path, tmp_path: Path) -> None:
    """An import does not import torch."""
    code = (
        "import sys; from topwork_trainer.cli.commands import cli\n"
        f"try: cli(['backbone', 'add', 'own', '--onnx', {str(file)!r}, '--repository', 'r'])\n"
        "finally: print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_add_stores_an_exported_backbone(exported: Path) -> None:
    """A backbone by name is exported, or found, and gets its notation as name."""
    name = backbones.DEFAULT
    done = run("backbone", "add", name, "--repository", exported)
    assert done.exit_code == 0, done.output
    (info,) = Repository(exported).backbones()
    assert Repository(exported).added_backbones() == {name: info.digest}


@pytest.mark.slow
def test_list_has_measured_backbones(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones on this machine are measured; others are listed only on request."""
    assert exported.is_dir()  # the cache has the default backbone
    monkeypatch.setattr(backbones, "available", lambda: [backbones.DEFAULT])

    def rows(*arguments: str) -> list[dict[str, Any]]:
        done = run("backbones", *arguments, "--json")
        assert done.exit_code == 0, done.output
        return list(json.loads(done.stdout)["backbones"])

    (own,) = rows()
    assert (own["name"], own["image_size"], own["width"]) == (backbones.DEFAULT, 224, 1280)
    assert own["weights"] == "here"
    assert own["milliseconds"] > 0
    found = {row["name"]: row for row in rows("re*18")}
    assert found["resnet18"] == {
        "name": "resnet18",
        "image_size": 224,
        "max_tokens": None,
        "audio_rate": None,
        "width": 512,
        "megabytes": pytest.approx(44.7, abs=0.2),
        "milliseconds": None,
        "licence": "BSD-3-Clause",
        "weights": "download",
    }
    assert rows("regnet_y_400mf")[0]["width"] == 440


def test_list_names_backbones_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that fails is named below the table with the reason."""
    monkeypatch.setattr(backbones, "available", lambda: ["nosuch"])
    assert "nosuch cannot be used: unknown backbone 'nosuch'" in run("backbones").output
