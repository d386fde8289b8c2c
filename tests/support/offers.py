"""Answered images, as the review queue takes them."""

from __future__ import annotations

import numpy as np

from support import tiny
from topwork.review.offer import Offer

MIDNIGHT = 20_000 * 86400.0
"""A midnight (UTC), in seconds since 1970."""


def offer(usefulness: float = 0.9, name: bytes = b"") -> Offer:
    """Return an uncertain image."""
    return Offer(
        model="colours",
        revision=1,
        backbone=tiny.backbone_info(tiny.backbone_model()),
        image=name,
        embedding=np.zeros(tiny.WIDTH, dtype=np.float16),
        label="blue",
        probability=0.5,
        margin=1 - usefulness,
        unknown_probability=0.0,
        is_unknown=False,
        time=MIDNIGHT,
    )
