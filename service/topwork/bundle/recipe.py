"""Recipe of a model: the heads and normalisations to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HeadKind = Literal["nearest_mean", "ridge", "logistic", "kernel", "fourier"]
"""Kinds of heads, cheapest to serve first; see ``topwork.learning.families``."""

Normalisation = Literal["none", "l2", "sqrt_l2", "standardise"]
"""Normalisation of embeddings; see ``topwork.bundle.features``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Choices of the head selection: one fixed kind, or all (``auto``). Children inherit it."""

    head: HeadKind | Literal["auto"] = "auto"
    normalisation: Normalisation | Literal["auto"] = "auto"
