"""Kinds of heads and normalisations, and the recipe that a model is trained by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HeadKind = Literal["nearest_mean", "ridge", "logistic", "kernel", "fourier"]
"""From the cheapest to the dearest to serve; see ``topwork.learning.families``."""

Normalisation = Literal["none", "l2", "sqrt_l2", "standardise"]
"""What happens to an embedding first; see ``topwork.bundle.features``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What cross-validation may choose from; a child revision keeps its parent's recipe."""

    head: HeadKind | Literal["auto"] = "auto"
    normalisation: Normalisation | Literal["auto"] = "auto"
