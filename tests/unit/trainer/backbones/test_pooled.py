"""Pooled backbones: the means of lower stages, computed by hand, and the export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 # the name that torch's own documentation uses
from torch import Tensor, nn

from topwork.errors import InvalidInput
from topwork.inputs.preprocess import PreprocessSpec
from topwork.runtime.backend import open_session
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice, TorchBackbone, torchvision_import
from topwork_trainer.backbones.efficientnet_lite import EfficientNetLite
from topwork_trainer.backbones.export import export
from topwork_trainer.backbones.parity import structured_images
from topwork_trainer.backbones.pooled import Pooled
from topwork_trainer.backbones.quantise import quantise

CROP = 16


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: two that wait for each other on busy cores take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return parts (N, C), each divided by its length, side by side."""
    return torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1)


def test_lite_joins_the_means_of_blocks_10_14_and_15() -> None:
    """EfficientNet-Lite0 gives 112 + 192 + 320 + 1,280 numbers, at its own and another size."""
    pooled = backbones.load(BackboneChoice(name="efficientnet_lite0:pooled"))
    plain = backbones.load(BackboneChoice(name="efficientnet_lite0"))
    assert (pooled.width, pooled.spec, pooled.weights_sha256) == (
        112 + 192 + 320 + 1280,
        plain.spec,
        plain.weights_sha256,
    )
    lite = plain.module
    assert isinstance(lite, EfficientNetLite)
    for side in (224, 160):
        images = torch.randn(2, 3, side, side)
        parts: list[Tensor] = []
        with torch.inference_mode():
            x = F.relu6(lite._bn0(lite._conv_stem(images)))
            for number, block in enumerate(lite._blocks):
                x = block(x)
                if number in {10, 14, 15}:
                    parts.append(x.mean(dim=(2, 3)))
            expected = joined([*parts, lite(images)])
            torch.testing.assert_close(pooled.module(images), expected)


def saved_weights(name: str, file: Path) -> Path:
    """Save seeded weights of a torchvision network."""
    torch.manual_seed(0)
    torch.save(torchvision_import.build(name).state_dict(), file)
    return file


def load(name: str, file: Path) -> tuple[nn.Module, nn.Module]:
    """Return the pooled and the plain module of a torchvision network."""
    pooled, plain = (
        backbones.load(BackboneChoice(name=name + suffix, weights=file)).module
        for suffix in (backbones.POOLED, "")
    )
    return pooled, plain


def test_resnet_joins_its_lower_layers(tmp_path: Path) -> None:
    """The layers of a ResNet below the last are averaged over their positions."""
    pooled, plain = load("resnet18", saved_weights("resnet18", tmp_path / "w.pth"))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        x = nn.Sequential(*list(plain.children())[:4])(images)
        parts: list[Tensor] = []
        for layer in ("layer1", "layer2", "layer3"):
            x = plain.get_submodule(layer)(x)
            parts.append(x.mean(dim=(2, 3)))
        torch.testing.assert_close(pooled(images), joined([*parts, plain(images)]))


def test_transformer_joins_the_mean_tokens_of_its_lower_blocks(tmp_path: Path) -> None:
    """The outputs of a vision transformer's blocks 8 to 10 are averaged over all tokens."""
    pooled, plain = load("vit_b_32", saved_weights("vit_b_32", tmp_path / "w.pth"))
    images = torch.randn(1, 3, 224, 224)
    parts: list[Tensor] = []
    hooks = [
        plain.get_submodule(f"encoder.layers.encoder_layer_{number}").register_forward_hook(
            lambda _module, _inputs, tokens: parts.append(tokens.mean(dim=1))
        )
        for number in (8, 9, 10)
    ]
    with torch.inference_mode():
        embedding = plain(images)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(pooled(images), joined([*parts, embedding]))


class ChannelsLast(nn.Module):
    """Turns (N, C, H, W) into (N, H, W, C)."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the features with channels last."""
        return features.permute(0, 2, 3, 1)


def test_features_with_channels_last_are_averaged_by_channel() -> None:
    """Height and width are the two equal dimensions."""
    top = nn.Linear(5, 4)
    module = nn.Sequential(nn.Conv2d(3, 5, 1), ChannelsLast(), top, nn.Flatten(1))
    images = torch.randn(2, 3, CROP, CROP)
    with torch.inference_mode():
        found = Pooled(module, ["2"], crop=CROP)(images)
        mean = module[:2](images).mean(dim=(1, 2))
    torch.testing.assert_close(found[:, :5], mean / mean.norm(dim=1, keepdim=True))


def test_backbone_without_positions_is_refused() -> None:
    """A network whose stages all take vectors has nothing to average."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * CROP * CROP, 4), nn.Linear(4, 4))
    with pytest.raises(InvalidInput, match="without :pooled") as caught:
        Pooled(module, ["1", "2"], crop=CROP)
    assert caught.value.field == "backbone"


def test_black_image_has_finite_means() -> None:
    """A mean of length 0 stays 0."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1, bias=False))
    network = nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = Pooled(network, ["0.0", "0.1"], crop=CROP)(torch.zeros(1, 3, CROP, CROP))
    assert found.tolist() == [[0.0] * 12]


def network() -> TorchBackbone:
    """Return a small pooled network with seeded weights."""
    torch.manual_seed(0)

    def layer(inner: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inner, out, 3, stride, 1), nn.ReLU6())

    layers = [layer(3, 16, 2), layer(16, 40, 1), layer(40, 48, 2), layer(48, 64, 1)]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return TorchBackbone(
        name="small:pooled",
        identity="small:pooled",
        module=Pooled(module, ["0", "1", "2", "3"], crop=CROP).eval(),
        mean=(127.0, 127.0, 127.0),
        std=(64.0, 64.0, 64.0),
        spec=PreprocessSpec(resize=CROP, crop=CROP),
        width=16 + 40 + 48 + 64,
        licence="",
        source="",
        weights_sha256="",
    )


def test_export_equals_torch_and_int8_is_similar() -> None:
    """The graph passes the parity check; in int8 the embeddings are not rounded to 8 bits."""
    graph = export(
        network(), open_session=lambda model: open_session(model, output="embedding").run
    ).onnx
    images = structured_images(CROP)
    int8 = open_session(quantise(graph, images), output="embedding").run(images)
    fp32 = open_session(graph, output="embedding").run(images)
    assert fp32.shape == (len(images), 168)
    lengths = np.linalg.norm(int8, axis=1) * np.linalg.norm(fp32, axis=1)
    assert ((int8 * fp32).sum(axis=1) / lengths).min() > 0.99
    for part in np.split(int8, (16, 56, 104), axis=1):  # rounding would change the lengths
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
