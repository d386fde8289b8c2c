"""Fixtures of the tests that run real commands with the default backbone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from topwork_trainer import commands


@pytest.fixture(scope="session")
def new_repository(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that makes repositories with the default backbone."""

    def make() -> Path:
        repository = tmp_path_factory.mktemp("repository")
        shutil.copytree(exported / "backbones", repository / "backbones")
        return repository

    return make


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 5 x 32 rendered flowers."""
    folder = tmp_path_factory.mktemp("rendered")
    commands.run("topwork_trainer", "demo-data", folder, "--images-per-label", 32, "--seed", 7)
    return folder
