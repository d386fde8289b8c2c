"""Image towers in Hugging Face's format: embeddings, preprocessing, licence, export, and errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import pictures, towers
from torch import Tensor, nn

from topwork.errors import InvalidInput, NotFound, TopworkError
from topwork.inputs.image import preprocess
from topwork.runtime.backend import open_session
from topwork_trainer import backbones
from topwork_trainer.backbones import TorchBackbone, export
from topwork_trainer.backbones.stages import stages
from topwork_trainer.ranking import probe

pytest.importorskip("transformers")

SIDE = towers.SIDE
EXPORTED = towers.FAMILIES if "TOPWORK_ALL_FAMILIES" in os.environ else ("clip", "siglip")
"""Families whose export is tested here; DINOv2's is in tests/integration/test_any_backbone.py."""

SQUASHING = ("dinov3", "siglip", "vit")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: two that wait for each other on busy cores take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a family; nobody may change it."""
    root = tmp_path_factory.mktemp("towers")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.is_dir() else towers.save(family, path)

    return folder


@pytest.fixture
def copied(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a folder of a DINOv2 that a test may change."""
    return Path(shutil.copytree(saved("dinov2"), tmp_path / "tower"))


def load(folder: Path, pool: str = "") -> TorchBackbone:
    """Load the tower in a folder."""
    return backbones.load(backbones.parse(f"hf/local-dir:{folder}{pool}"))


def images(side: int = SIDE) -> Tensor:
    """Return two images."""
    return torch.sin(torch.arange(2 * 3 * side * side, dtype=torch.float32)).view(2, 3, side, side)


def published(family: str) -> dict[str, Tensor]:
    """Return transformers' own embeddings of the images, by pool."""
    model = towers.model(family)
    with torch.inference_mode():
        model = getattr(model, {"clip": "vision_model", "vit": "vit"}.get(family, ""), model)
        outputs = model(pixel_values=images())
        tokens = outputs.last_hidden_state
        if family == "clip":
            tokens = model.post_layernorm(tokens)
    prefix = {"dinov3": 5, "siglip": 0}.get(family, 1)
    found = {":mean": tokens[:, prefix:].mean(1)}
    if prefix:
        found[":cls"] = tokens[:, 0]
        found[":cls-mean"] = torch.cat(
            [nn.functional.normalize(found[pool]) for pool in (":cls", ":mean")], dim=1
        )
    found[""] = tokens[:, 0] if family == "vit" else outputs.pooler_output
    return found


@pytest.mark.parametrize("family", towers.FAMILIES)
def test_embeddings_are_those_of_transformers(family: str, saved: Callable[[str], Path]) -> None:
    """Pooled output, CLS, mean and both agree, whatever class saved the weights."""
    for pool, expected in published(family).items():
        backbone = load(saved(family), pool)
        with torch.inference_mode():
            torch.testing.assert_close(backbone.module(images()), expected)
        assert backbone.width == expected.shape[1]
    assert len(stages(backbone.module)) == (4 if family == "siglip" else 3)  # with its pooling


@pytest.mark.parametrize("family", ["dinov2", "siglip"])
def test_pools_of_one_pass_are_the_embeddings_of_each(
    family: str, saved: Callable[[str], Path]
) -> None:
    """The parts that cross-validation compares are the embeddings that are exported later."""
    expected = published(family)
    with torch.inference_mode():
        parts = load(saved(family), ":parts").module(images()).numpy()
    pools = probe._pools(parts)
    assert set(pools) == {"dinov2": {"", ":mean", ":cls-mean"}, "siglip": {"", ":mean"}}[family]
    for pool, embeddings in pools.items():
        np.testing.assert_allclose(embeddings, expected[pool], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "cells"), [((90, 90), 12), ((120, 90), 3)])
@pytest.mark.parametrize("family", towers.FAMILIES)
def test_pixels_are_those_of_the_image_processor(
    family: str, size: tuple[int, int], cells: int, saved: Callable[[str], Path]
) -> None:
    """They agree within resampling; processors that stretch images agree on the central square.

    Oblong images have larger cells, because transformers crops at whole pixels.
    """
    noise = np.random.default_rng(0).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    backbone = load(saved(family))
    ours = preprocess(pictures.encode(image), backbone.spec)
    if family in SQUASHING:
        left = (size[0] - size[1]) // 2
        image = image.crop((left, 0, left + size[1], size[1]))
    pixels = towers.processor(family)(images=image, return_tensors="np")["pixel_values"][0]
    theirs = np.transpose(pixels, (1, 2, 0)) * backbone.std + backbone.mean
    assert np.abs(ours - theirs).mean() < 3
    assert np.abs(ours - theirs[::-1]).mean() > 20  # the comparison can fail


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_graph_agrees_with_torch(family: str, saved: Callable[[str], Path]) -> None:
    """The graph takes any number of images and passes the parity check."""
    exported = export.export(
        load(saved(family)),
        open_session=lambda model: open_session(model, output="embedding").run,
    )
    assert exported.parity.images == 12


def test_position_embeddings_are_resized(saved: Callable[[str], Path]) -> None:
    """Another image size is possible, and is that of the graph."""
    name = f"hf/local-dir:{saved('siglip')}@48"
    backbone = backbones.load(backbones.parse(name))
    assert backbone.spec.crop == 48
    with torch.inference_mode():
        assert backbone.module(images(48)).shape == (2, 32)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# Model\nlicense: mit\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ("# Model\nlicense: mit\n", "unknown, ask its owner"),
        (None, "unknown, ask its owner"),
    ],
)
def test_licence_is_that_of_the_model_card(card: str | None, licence: str, copied: Path) -> None:
    """Only the metadata of the card counts."""
    if card:
        (copied / "README.md").write_text(card)
    assert load(copied).licence == licence


def test_identity_has_all_files(copied: Path) -> None:
    """An export is not reused if the processor changes, also with a weights file."""
    weights = copied / "model.safetensors"
    choices = [
        backbones.BackboneChoice(name=f"hf/local-dir:{copied}:cls", weights=file)
        for file in (None, weights)
    ]
    before = {choice.identity() for choice in choices}
    towers.processor("clip").save_pretrained(copied)
    assert not before & {choice.identity() for choice in choices}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_cast(half: torch.dtype, copied: Path) -> None:
    """The network computes in float32."""
    towers.model("dinov2").to(half).save_pretrained(copied)
    with torch.inference_mode():
        embedding = load(copied).module(images())
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, published("dinov2")[""], rtol=0.1, atol=0.1)


def rewrite(file: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def damage_weights(folder: Path, value: float) -> None:
    model = towers.model("dinov2")
    model.layernorm.bias.data[0] = value
    model.save_pretrained(folder)


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(towers.model("dinov2").state_dict(), folder / "pytorch_model.bin")


def save_text_model(folder: Path) -> None:
    transformers: Any = sys.modules["transformers"]
    shape = {key: towers._TEXT[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
    transformers.BertConfig(**shape, num_attention_heads=2).save_pretrained(folder)


def processor_with(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "preprocessor_config.json", **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read its config.json"),
        (
            lambda folder: rewrite(
                folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"}
            ),
            "cannot read its config.json",
        ),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "has no preprocessor_config.json",
        ),
        (pickle_weights, "pytorch_model.bin may contain code"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"),
            "safetensors cannot read it",
        ),
        (lambda folder: damage_weights(folder, float("nan")), "'layernorm.bias' has values that"),
        (save_text_model, "'bert' takes input_ids, not pixel_values"),
        (
            lambda folder: rewrite(folder / "config.json", num_hidden_layers=3),
            "weights are missing, the first is '",
        ),
        (
            lambda folder: rewrite(folder / "config.json", num_channels=1),
            "it cannot embed an image",
        ),
        (processor_with(image_processor_type="Own"), "cannot read its preprocessor"),
        (processor_with(do_resize=False), "does not scale images to one size"),
        (processor_with(crop_size={"height": 32, "width": 16}), "crop_size is 32 x 16"),
        (processor_with(crop_size=64), "crop 64 must be between"),
        (processor_with(image_std=[1.0, 0.0, 1.0]), "it normalises with mean"),
    ],
)
def test_unusable_folders_are_refused(
    change: Callable[[Path], object], message: str, copied: Path
) -> None:
    """The error is one sentence that names the folder or file and what is wrong."""
    change(copied)
    with pytest.raises(TopworkError, match=message) as raised:
        load(copied)
    assert str(copied) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("family", "pool", "message"),
    [
        ("siglip", ":cls", "has no CLS token for :cls"),
        ("siglip", ":cls-mean", "has no CLS token for :cls-mean"),
        ("vit", ":auto", "use it with fit or rank"),
        ("vit", ":auto:pooled", "use it with fit or rank"),
    ],
)
def test_unknown_pools_are_refused(
    family: str, pool: str, message: str, saved: Callable[[str], Path]
) -> None:
    """A network without the token is named."""
    with pytest.raises(InvalidInput, match=message):
        load(saved(family), pool)


@pytest.mark.parametrize("name", ["hf/dinov2", "hf/./tower", "hf//tower", "hf/a/b/c"])
def test_names_of_another_form_are_refused(name: str) -> None:
    """The error shows both forms."""
    with pytest.raises(InvalidInput, match="write hf/OWNER/NAME, or hf/local-dir:PATH"):
        backbones.load(backbones.parse(name))


def test_hub_without_network_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to copy a snapshot; a snapshot in the cache needs no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(*_: object, **__: object) -> str:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(NotFound, match=r"\(Name or service not known\): where .* hf/local-dir:DIR"):
        backbones.load(backbones.parse("hf/facebook/dinov2-small"))
    towers.save("dinov2", tmp_path)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda _, *, local_files_only: str(tmp_path) if local_files_only else fail(),
    )
    backbone = backbones.load(backbones.parse("hf/facebook/dinov2-small:mean"))
    assert (backbone.width, backbone.source) == (32, "facebook/dinov2-small")


def test_missing_package_is_named(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without transformers the error says how to install it."""
    folder = saved("vit")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidInput, match=r"pip install 'topwork\[cpu,train,transformers\]'"):
        load(folder)
