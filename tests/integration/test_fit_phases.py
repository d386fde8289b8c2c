"""Fine-tuning and quantization in a fit, on a real backbone with small images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.pictures import picture

from topwork.bundle.store import Repository
from topwork_trainer.cli.options import cache_directory
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.fit.fit import FitConfig, FitResult, fit

LABELS = ("amber", "blue", "crimson")
TUNING = FinetuneConfig(unfreeze="last:1", epochs=1, augmented_views=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders of 16 pictures each."""
    root = tmp_path_factory.mktemp("data")
    for label in LABELS:
        (root / label).mkdir()
        for index in range(16):
            (root / label / f"{index:02d}.png").write_bytes(picture(label, index))
    return root


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Return a fit with both phases, published regardless of their metrics."""
    config = FitConfig(
        data=data,
        model="colours",
        repository=tmp_path_factory.mktemp("repository"),
        image_size=32,
        finetuning=TUNING,
        publish="finetuned",
        precision="int8",
        cache=cache_directory(),
    )
    return fit(config, lambda *_: None)


def test_a_tuned_backbone_has_its_own_identity(fitted: FitResult) -> None:
    """A tuned backbone has a new identity and digest; the repository also has the frozen one."""
    repository = Repository(Path(fitted.report).parents[3])
    frozen, *others = sorted(repository.backbones(), key=lambda backbone: len(backbone.identity))
    assert fitted.backbone in others
    assert ":tuned:" in fitted.backbone.identity
    assert fitted.backbone.weights_digest != frozen.weights_digest


def test_metrics_exclude_images_used_for_tuning(fitted: FitResult) -> None:
    """Metrics are of the held-out images only, although the head is fitted on all."""
    repository = Repository(Path(fitted.report).parents[3])
    exemplars = repository.exemplars(fitted.manifest.exemplars)
    held_out = int(np.count_nonzero(~exemplars.seen))
    assert 0 < held_out < len(exemplars) / 2
    assert fitted.metrics.images == held_out
    assert fitted.manifest.images == len(exemplars) == 48


def test_an_int8_backbone_is_published_with_its_gate(fitted: FitResult) -> None:
    """The published backbone is int8; manifest, notes and report have the precision gate."""
    assert fitted.backbone.precision == "int8"
    gate = fitted.manifest.precision_gate
    assert gate is not None
    assert gate.speed_ratio > 0
    assert gate.why in fitted.notes
    assert gate.why in Path(fitted.report).read_text()


def test_fit_deletes_its_checkpoint(fitted: FitResult) -> None:
    """The checkpoint is deleted after publishing."""
    root = Path(fitted.report).parents[3]
    assert not list((root / "checkpoints").glob("*"))


def test_fit_publishes_the_frozen_backbone_unless_tuning_helps(data: Path, tmp_path: Path) -> None:
    """The frozen backbone is published unless the tuned one is significantly better."""
    config = FitConfig(
        data=data,
        model="m",
        repository=tmp_path,
        image_size=32,
        finetuning=TUNING,
        cache=cache_directory(),
    )
    fitted = fit(config, lambda *_: None)
    assert ":tuned:" not in fitted.backbone.identity
    assert "not significant, so the frozen backbone is used" in fitted.notes[0]
    assert fitted.metrics.images == 48


def test_fit_resumes_after_a_kill_while_tuning(data: Path, tmp_path: Path) -> None:
    """After kill -9 between epochs no model exists; the same command resumes and publishes."""
    command = [
        sys.executable, "-m", "topwork_trainer.cli", "fit", str(data), "--model", "m",
        "--repository", str(tmp_path), "--image-size", "32", "--unfreeze", "last:1",
        "--epochs", "2", "--json",
    ]  # fmt: skip
    checkpoints = tmp_path / "checkpoints" / "m"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        _until(lambda: any(checkpoints.glob("fold-*.pt")) or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
    assert Repository(tmp_path).models() == []
    assert any(checkpoints.glob("fold-*.pt"))
    subprocess.run(command, check=True, capture_output=True)
    assert Repository(tmp_path).serving("m") == 1
    assert not checkpoints.exists()


def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # ended by pytest's timeout
        time.sleep(0.01)
