"""Fixtures of the tests that run real commands with the default backbone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from topwork.bundle.store import Repository
from topwork_trainer import commands
from topwork_trainer.backbones import DEFAULT, BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.cli.options import cache_directory


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the default backbone; its export is also in the cache."""
    root = tmp_path_factory.mktemp("exported")
    prepare_backbone(Repository(root), BackboneChoice(name=DEFAULT), Exports(cache_directory()))
    return root


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
