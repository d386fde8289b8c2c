"""A stored export is used again as long as it is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny

from topwork.bundle.store import Repository
from topwork_trainer import backbones
from topwork_trainer.backbones import Choice, prepare


def test_an_export_is_used_again_unless_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit takes what is stored; what is damaged is exported again, which repairs it."""
    repository, choice = Repository(tmp_path), Choice(name="efficientnet_lite0")
    model = tiny.backbone_model()
    info = replace(tiny.backbone_info(model), identity=choice.identity())
    repository.put_backbone(model, info)
    assert prepare.prepare_backbone(repository, choice) == info
    path = repository.path("backbones", info.digest) / "backbone.onnx"
    path.write_bytes(b"damaged")
    loaded = SimpleNamespace(identity=choice.identity())
    monkeypatch.setattr(backbones, "load", lambda _choice: loaded)
    monkeypatch.setattr(prepare, "store", lambda kept, _one: kept.put_backbone(model, info))
    assert prepare.prepare_backbone(repository, choice) == info
    assert path.read_bytes() == model
