"""Review policy of a model: content of review.json, which says what the review queue keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from topwork.bundle.documents import document
from topwork.errors import InvalidInput

FILE = "review.json"
"""File name, in the directory of the model. Without it nothing is kept."""

MAX_PER_DAY = 2_000
"""Raising it lets models keep more images a day than a person can look at."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewPolicy:
    """Images that the review queue of a model keeps. All servers of a repository share it."""

    enabled: bool = False
    """False: nothing is kept, and answers have no id."""
    images_per_day: Annotated[int, msgspec.Meta(ge=1, le=MAX_PER_DAY)] = 100
    """Most images that are kept a day (UTC), of all servers together, without corrections."""
    max_bytes: Annotated[int, msgspec.Meta(ge=2**20, le=2**40)] = 2**28
    """Most bytes of all kept images."""
    keep_seconds: Annotated[int, msgspec.Meta(ge=60, le=10 * 366 * 86400)] = 30 * 86400
    """Age at which a kept image is deleted."""
    unknown: bool = True
    """True: images that the model calls unknown are kept."""
    far: bool = True
    """True: images that are below the model's threshold, but more probably unknown than known."""
    max_margin: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    """Images whose two highest probabilities differ by less are kept; 0: none."""
    random_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """Share of ``images_per_day`` for images drawn at random, whatever their answer."""


def checked(policy: ReviewPolicy) -> ReviewPolicy:
    """Return ``policy``. Raises InvalidInput if a value is out of range."""
    for name, least, most in (
        ("images_per_day", 1, MAX_PER_DAY),
        ("max_bytes", 2**20, 2**40),
        ("keep_seconds", 60, 10 * 366 * 86400),
        ("max_margin", 0, 1),
        ("random_share", 0, 1),
    ):
        value = getattr(policy, name)
        if not least <= value <= most:  # false for NaN
            field = {"keep_seconds": "ttl"}.get(name, name)
            raise InvalidInput(
                f"{field} is {value:g}; it must be {least} to {most}", field=f"policy.{field}"
            )
    return policy
