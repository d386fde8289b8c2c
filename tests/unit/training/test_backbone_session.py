"""Session of a stored backbone, or of its twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import tiny

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.training.backbone_session import open_backbone_session

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def saturating(tmp_path: Path) -> tuple[Repository, BackboneInfo]:
    """Return a repository with a backbone that is off, and its description."""
    repository = tiny.saturating_repository(tmp_path / "repository")
    manifest = repository.manifest("colours", 1)
    return repository, repository.backbone(manifest)


def test_backbone_that_agrees_is_opened(tmp_path: Path) -> None:
    """Nothing changes where the embeddings are those expected."""
    repository = Repository(tmp_path)
    model = tiny.backbone_model()
    info = tiny.quantised_info(model)
    repository.put_backbone(model, info)
    opened = open_backbone_session(repository, info)
    assert (opened.info, opened.off) == (info, None)


def test_twin_of_a_backbone_that_is_off_is_opened(
    saturating: tuple[Repository, BackboneInfo],
) -> None:
    """The embeddings are those of the twin."""
    repository, info = saturating
    opened = open_backbone_session(repository, info)
    assert opened.info.digest == info.twin
    assert opened.off is not None
    assert opened.off.items() >= {("backbone", info.digest), ("used", "fp32")}
    assert opened.session.run(IMAGES).max() > 32


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_backbone_that_is_off_is_opened_without_its_twin(
    saturating: tuple[Repository, BackboneInfo], damage: str
) -> None:
    """Without a usable twin the backbone itself is used; the facts have the reason."""
    repository, info = saturating
    assert info.twin is not None
    path = (repository.root / repository.key("backbones", info.twin)) / "backbone.onnx"
    path.unlink()
    if damage == "changed":
        path.write_bytes(b"changed")
    opened = open_backbone_session(repository, info)
    assert opened.info == info
    assert opened.off is not None
    assert opened.off["used"] == "int8"
    assert damage in str(opened.off["twin_error"])
    assert opened.session.run(IMAGES).max() == 32


def test_damaged_backbone_is_corrupt_whatever_its_twin(
    saturating: tuple[Repository, BackboneInfo],
) -> None:
    """The twin replaces a backbone that is off, not one that is damaged."""
    repository, info = saturating
    ((repository.root / repository.key("backbones", info.digest)) / "backbone.onnx").write_bytes(
        b"changed"
    )
    with pytest.raises(Corrupt, match="changed"):
        open_backbone_session(repository, info)
