"""Reuse of stored exports, with the current mapping of deep greyscale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import tiny

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.runtime.agreement import measure
from topwork.runtime.backend import open_session
from topwork.storage.files import sha256
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice, prepare
from topwork_trainer.backbones.prepare import prepare_backbone

CHOICE = BackboneChoice(name="efficientnet_lite0")


@pytest.fixture
def old(tmp_path: Path) -> tuple[Repository, BackboneInfo]:
    """Return a repository with an export whose spec has the earlier mapping, ``depth``."""
    repository = Repository(tmp_path)
    model = tiny.backbone_model()
    info = tiny.backbone_info(model)
    spec = replace(info.image_spec, deep_grey="depth")
    info = replace(info, identity=CHOICE.identity(), digest=sha256(model), preprocess=spec)
    return repository, repository.put_backbone(model, info)


def test_prepare_copies_an_old_export_with_the_new_mapping(
    old: tuple[Repository, BackboneInfo],
) -> None:
    """A new fit gets a new backbone; existing models keep the old one."""
    repository, info = old
    new = prepare_backbone(repository, CHOICE)
    assert new.image_spec == replace(info.image_spec, deep_grey="percentiles")
    assert new.digest != info.digest
    assert repository.backbone_info(info.digest) == info


def test_prepared_copy_has_the_same_embeddings(old: tuple[Repository, BackboneInfo]) -> None:
    """The new backbone gives the embeddings of the old one, bit by bit."""
    repository, info = old
    new = prepare_backbone(repository, CHOICE)
    crop = info.image_spec.crop
    images = np.random.default_rng(0).integers(0, 256, (2, crop, crop, 3), dtype=np.uint8)
    before, after = (
        open_session(repository.backbone_model(backbone.digest), output="embedding").run(images)
        for backbone in (info, new)
    )
    assert (before == after).all()


def test_prepare_copies_an_old_export_once(old: tuple[Repository, BackboneInfo]) -> None:
    """The second fit uses the copy that the first one stored."""
    repository, _ = old
    assert prepare_backbone(repository, CHOICE) == prepare_backbone(repository, CHOICE)
    assert len(repository.backbones()) == 2


def test_prepare_repairs_a_damaged_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit uses the stored export; a damaged one is exported again, which repairs it."""
    repository, choice = Repository(tmp_path), BackboneChoice(name="efficientnet_lite0")
    model = tiny.backbone_model()
    info = tiny.backbone_info(model)
    spec = replace(info.image_spec, deep_grey="percentiles")
    info = replace(info, identity=choice.identity(), preprocess=spec)
    repository.put_backbone(model, info)
    assert prepare.prepare_backbone(repository, choice) == info
    path = (repository.root / repository.key("backbones", info.digest)) / "backbone.onnx"
    path.write_bytes(b"damaged")
    loaded = SimpleNamespace(identity=choice.identity())
    monkeypatch.setattr(backbones, "load", lambda _choice: loaded)
    monkeypatch.setattr(prepare, "store", lambda target, _: target.put_backbone(model, info))
    assert prepare.prepare_backbone(repository, choice) == info
    assert path.read_bytes() == model


def test_export_has_its_expected_embeddings(exported: Path) -> None:
    """A server can check the exported graph, which gives them again."""
    (info,) = Repository(exported).backbones()
    session = open_session(Repository(exported).backbone_model(info.digest), output="embedding")
    assert info.twin is None
    found = measure(info, session.run)
    assert found is not None
    assert found > 0.999999


def test_name_added_with_own_weights_means_these(tmp_path: Path) -> None:
    """``fit --backbone NAME`` uses the weights that ``backbone add NAME --weights`` stored."""
    repository, digest = Repository(tmp_path), "7" * 64
    model = tiny.backbone_model()
    info = replace(
        tiny.backbone_info(model), identity=f"resnet18:{digest}:1", weights_digest=digest
    )
    repository.put_backbone(model, info)
    choice = BackboneChoice(name="resnet18")
    assert prepare.find_own_weights(repository, choice) is None  # it has no name
    repository.add_backbone("resnet18", info.digest)
    assert prepare_backbone(repository, choice).digest == info.digest
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    for another in (replace(choice, views=2), replace(choice, weights=other)):
        assert prepare.find_own_weights(repository, another) is None
