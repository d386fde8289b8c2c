"""Embedding of a vision transformer: CLS, the mean of its patches, or both. Imports torch."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from topwork.errors import InvalidInput
from topwork_trainer.backbones.plans import PARTS, split_pool
from topwork_trainer.backbones.pooled import unit


class Parts(NamedTuple):
    """Embeddings of images by one pass of a vision transformer."""

    own: Tensor
    """That of its publisher, (N, W)."""
    cls: Tensor | None
    """That of the CLS token, (N, D); None: it has none."""
    mean: Tensor
    """Mean of the patches, (N, D)."""


class TokenPooling(nn.Module):
    """Maps images (N, 3, H, W) to one of the parts, or several.

    ``cls-mean`` scales CLS and mean to length 1, so that neither outweighs the other, (N, 2 D).
    ``PARTS`` is (N, 3 D): own, CLS and mean, with zeros for a CLS token that does not exist.
    """

    def __init__(self, vision_transformer: nn.Module, pool: str) -> None:
        super().__init__()
        self.vision_transformer: Any = vision_transformer
        self.pool = pool

    @abstractmethod
    def parts(self, images: Tensor) -> Parts:
        """Return the embeddings."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding."""
        own, cls, mean = self.parts(images)
        if self.pool == PARTS:
            return torch.cat([own, torch.zeros_like(mean) if cls is None else cls, mean], dim=1)
        if not self.pool:
            return own
        if self.pool == "mean":
            return mean
        assert cls is not None, "check has refused it"
        return cls if self.pool == "cls" else torch.cat([unit(cls), unit(mean)], dim=1)

    def check(self, name: str, side: int) -> None:
        """Raise InvalidInput if the network ``name`` has no embedding of that kind."""
        network, pool = split_pool(name)
        with torch.inference_mode():
            own, cls, mean = self.parts(torch.zeros(2, 3, side, side))
        assert mean.ndim == 2, "tokens are (N, T, D)"
        if pool in {"cls", "cls-mean"} and cls is None:
            raise InvalidInput(f"{network} has no CLS token for :{pool}", field="backbone")
        if pool == PARTS and own.shape != mean.shape:
            raise InvalidInput(
                f"the embedding of {network} has {own.shape[1]} values and its tokens"
                f" {mean.shape[1]}, so they cannot be compared in one pass: rank their names",
                field="backbone",
            )
