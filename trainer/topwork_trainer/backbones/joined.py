"""Several backbones as one, with concatenated embeddings. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from topwork_trainer.backbones.plans import Rgb


class Joined(nn.Module):
    """Maps images (N, 3, H, W), RGB, 0 to 255, to concatenated embeddings (N, sum of widths).

    Each part has its own mean and std, and its embedding is scaled to length 1, so that a part with
    larger values does not outweigh the others.
    """

    def __init__(self, parts: Sequence[tuple[nn.Module, Rgb, Rgb]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_Normalised(*part) for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        """Return the concatenated embeddings."""
        return torch.cat([normalize(part(images), dim=1) for part in self.parts], dim=1)


class _Normalised(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.module((images - self.mean) / self.std)
        return embedding
