"""A backbone of two stages in torch, and pictures for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from support.pictures import picture
from topwork.inputs.image_source import ImageSource
from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer.backbones import TorchBackbone


class Small(nn.Module):
    """Network of two stages with batch norms, and dropout that training must not enable."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 16)."""
        features: Tensor = self.features(images)
        return features.mean(dim=(2, 3))


def backbone(*, views: int = 1, module: nn.Module | None = None) -> TorchBackbone:
    """Return the backbone, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = module or Small().eval()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):  # as after training
                norm.running_mean = torch.randn_like(norm.bias) / 10
                norm.running_var = torch.rand_like(norm.bias) + 0.5
    return TorchBackbone(
        name="small",
        identity="small:1",
        module=module,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        spec=PreprocessSpec(resize=16, crop=16),
        width=16,
        views=views,
        licence="none",
        source="test",
        weights_sha256="",
    )


def photos(labels: Sequence[str], count: int) -> list[ImageSource]:
    """Return ``count`` pictures of each label."""
    return [
        ImageSource(
            name=f"{label}/{index:02}", label=label, read=partial(bytes, picture(label, index))
        )
        for label in labels
        for index in range(count)
    ]
