"""Backbones of timm: description, weights of all forms, pooling, and errors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topwork.errors import InvalidInput, NotFound
from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer import backbones
from topwork_trainer.backbones import TorchBackbone, timm_import
from topwork_trainer.backbones.stages import stages

safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: two that wait for each other on busy cores take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(name: str, **options: Any) -> nn.Module:
    """Return timm's own model in eval mode, with seven classes and seeded weights."""
    torch.manual_seed(0)
    module: nn.Module = timm_import.package().create_model(name, num_classes=7, **options)
    return module.eval()


def load(name: str, weights: Path) -> TorchBackbone:
    """Load a backbone with weights in a file."""
    return backbones.load(replace(backbones.parse(name), weights=weights))


def images(side: int = 160) -> Tensor:
    """Return two images."""
    return torch.sin(torch.arange(2 * 3 * side * side, dtype=torch.float32)).view(2, 3, side, side)


def test_description_is_that_of_timm(tmp_path: Path) -> None:
    """Size, mean, std and interpolation come from timm; the classifier is cut off."""
    model: Any = random_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = load("timm/test_resnet", tmp_path / "w.pth")
    config = model.pretrained_cfg
    assert backbone.mean == pytest.approx([255 * value for value in config["mean"]])
    assert backbone.std == pytest.approx([255 * value for value in config["std"]])
    assert backbone.spec == PreprocessSpec(
        resize=168, crop=160, interpolation="bilinear", deep_grey="percentiles"
    )
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(backbone.module(images()), expected)
    assert backbone.width == expected.shape[1]
    assert len(stages(backbone.module)) > 3


def checkpoint(state: dict[str, Tensor], file: Path) -> None:
    """Write a checkpoint of a data-parallel training with its options."""
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": parallel, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, file)


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("w.safetensors", safetensors.save_file),
        ("w.pth", checkpoint),
        ("w.pth", lambda state, file: torch.save({"state_dict": state}, file)),
    ],
)
def test_weights_are_read_in_all_forms(
    file: str, write: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    """Files of safetensors and checkpoints give the embeddings of a plain state dict."""
    model = random_model("test_convnext")
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    write(dict(model.state_dict()), tmp_path / file)
    expected, found = (
        load("timm/test_convnext", path) for path in (tmp_path / "plain.pth", tmp_path / file)
    )
    with torch.inference_mode():
        assert (expected.module(images()) == found.module(images())).all()


@pytest.mark.parametrize("pool", ["cls", "mean", "cls-mean"])
def test_vision_transformer_is_pooled(pool: str, tmp_path: Path) -> None:
    """CLS, the mean of the patches, or both at length 1 are the embedding."""
    model: Any = random_model("test_vit")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = load(f"timm/test_vit:{pool}", tmp_path / "w.pth")
    with torch.inference_mode():
        tokens = model.forward_features(images())
        parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1)}
        both = torch.cat([nn.functional.normalize(part) for part in parts.values()], dim=1)
        expected = parts.get(pool, both)
        torch.testing.assert_close(backbone.module(images()), expected)
    assert backbone.width == expected.shape[1]
    assert backbone.name == f"timm/test_vit:{pool}"
    assert len(stages(backbone.module)) > 2


def test_local_folder_has_network_and_weights(tmp_path: Path) -> None:
    """A folder as the hub has it needs no weights option."""
    model: Any = random_model("test_efficientnet")
    config = {"architecture": "test_efficientnet", "num_classes": 7}
    config |= {"pretrained_cfg": {"mean": [0, 0, 0], "license": "mit", "input_size": [3, 96, 96]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotFound, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        backbones.load(backbones.parse(f"timm/local-dir:{tmp_path}"))
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = backbones.load(backbones.parse(f"timm/local-dir:{tmp_path}"))
    assert (backbone.spec.crop, backbone.mean, backbone.licence) == (96, (0, 0, 0), "mit")
    choices = [backbones.parse(f"timm/local-dir:{tmp_path}{pool}") for pool in ("", ":cls")]
    before = {choice.identity() for choice in choices}
    (tmp_path / "config.json").write_text(json.dumps(config | {"note": 1}))
    after = {choice.identity() for choice in choices}  # an export of other files is not reused
    assert len(before | after) == 4
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images(96)), pre_logits=True)
        torch.testing.assert_close(backbone.module(images(96)), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet19", "unknown backbone 'timm/resnet19' .*; close to it: timm/resn"),
        ("timm/local-dir:/nonexistent", "unknown backbone .*/nonexistent"),
        ("timm/test_resnet:cls", "timm/test_resnet has no tokens for :cls"),
        ("timm/samvit_base_patch16:cls", "has no "),
    ],
)
def test_unknown_networks_are_refused(name: str, message: str) -> None:
    """The error has the name, and similar ones."""
    with pytest.raises(InvalidInput, match=message):
        backbones.load(backbones.parse(name))


def test_unfit_weights_are_refused(tmp_path: Path) -> None:
    """Weights of another network are not loaded in part."""
    torch.save(random_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match="does not fit timm/test_efficientnet"):
        load("timm/test_efficientnet", tmp_path / "w.pth")


def test_download_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that the weights are missing and what to pass instead."""

    def fail(*_: object, **__: object) -> str:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(NotFound, match=r"timm/test_vit\.r160_in1k are not on this") as raised:
        backbones.load(backbones.parse("timm/test_vit.r160_in1k"))
    assert "(Name or service not known); pass --weights FILE" in str(raised.value)


def test_cached_weights_are_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in the hub's cache are found without the network, under timm's name."""
    folder = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / "1"
    folder.mkdir(parents=True)
    safetensors.save_file(random_model("test_vit").state_dict(), folder / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert backbones.available()[-1] == "timm/test_vit.r160_in1k"
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _, file: str(folder / file)
    )
    backbone = backbones.load(backbones.parse("timm/test_vit.r160_in1k"))
    assert (backbone.width, backbone.source) == (64, "timm/test_vit.r160_in1k")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm the error says how to install it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidInput, match=r"pip install 'topwork\[cpu,train,timm\]'"):
        backbones.load(backbones.parse("timm/resnet18"))
