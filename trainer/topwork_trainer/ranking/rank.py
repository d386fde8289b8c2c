"""Ranking of backbones: what each gains on these photos, and what it costs to serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from topwork.errors import InvalidInput
from topwork.report.content import RankedBackbone
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.fit.paired import paired
from topwork_trainer.ranking.probe import Prober, Tried, sample

SAMPLE = 1000
"""Photos that backbones are tried on: a standard error of about half a point between two."""

LEAST_GAIN = 0.005
"""Of accuracy: no dearer backbone is taken for less."""

IMAGE_SIZES = (288, 320)
"""What ``auto`` tries beside a backbone's own size."""


def rank(
    attempts: Attempts, choices: Sequence[BackboneChoice], *, size: int = SAMPLE
) -> tuple[BackboneChoice, list[RankedBackbone]]:
    """Try backbones on a sample of the photos; return the one to take, and all, best first.

    A backbone that cannot be tried is listed last, with the reason. Raises InvalidInput if none
    can.
    """
    prober = _prober(attempts, size)
    return _result([prober.tried(choice) for choice in choices])


def select(
    attempts: Attempts,
    *,
    name: str | None = None,
    weights: Path | None = None,
    image_size: int | Literal["auto"] | None = None,
    views: int | Literal["auto"] = 1,
    size: int = SAMPLE,
) -> tuple[BackboneChoice, list[RankedBackbone]]:
    """Search for the backbone to take; return it, and all that were tried, best first.

    ``name`` None stands for every available backbone. Sizes and views are tried for the best ones
    only: first all names, then larger images for the best two, then these two joined, then the
    mirror image for what would be taken. Raises InvalidInput if nothing works.
    """
    if name is None and weights is not None:
        raise InvalidInput("a weights file needs the name of its backbone", field="backbone")
    prober = _prober(attempts, size)
    own = BackboneChoice(
        name=name or backbones.DEFAULT,
        weights=weights,
        image_size=None if image_size == "auto" else image_size,
        views=1 if views == "auto" else views,
    )
    names = backbones.available() if name is None else [name]
    tried = [prober.tried(replace(own, name=one)) for one in names]
    if image_size == "auto":
        tried += [prober.tried(one) for one in _larger(_best(tried, 2))]
    if name is None:
        tried += [prober.tried(one) for one in _joined(tried)]
    if views == "auto" and (working := _working(tried)):
        tried.append(prober.tried(replace(choose(working).choice, views=2)))
    return _result(tried)


def choose(tried: Sequence[Tried]) -> Tried:
    """Return the backbone to take, of at least one that worked.

    Start with the cheapest to serve (milliseconds an image). Go through the others from cheap to
    dear, and take one instead of what is held if it is better beyond noise: on the photos that both
    judged, the gain in accuracy is at least LEAST_GAIN and above one standard error of the paired
    difference.
    """
    held, *dearer = sorted(tried, key=lambda one: (one.row.milliseconds, str(one.choice)))
    for one in dearer:
        shared = [name for name in held.right if name in one.right]
        found = paired(
            np.array([one.right[name] for name in shared], dtype=bool),
            np.array([held.right[name] for name in shared], dtype=bool),
        )
        error = (found.high - found.low) / (2 * 1.959964)
        if found.gain >= LEAST_GAIN and found.gain > error:
            held = one
    return held


def explain(ranked: Sequence[RankedBackbone]) -> str:
    """Return a sentence on what the chosen one gains over the cheapest, and what it costs."""
    working = [row for row in ranked if not row.error]
    chosen = next(row for row in working if row.chosen)
    cheapest = min(working, key=lambda row: row.milliseconds)
    if chosen is cheapest:
        return f"{shown(chosen)} is taken: {_numbers(chosen)}; no dearer one is better beyond noise"
    return (
        f"{shown(chosen)} is taken: {_numbers(chosen)}, which is "
        f"{100 * (chosen.accuracy - cheapest.accuracy):+.1f} points for "
        f"{chosen.milliseconds / cheapest.milliseconds:.1f} times the cost of the cheapest, "
        f"{shown(cheapest)} ({_numbers(cheapest)})"
    )


def shown(row: RankedBackbone) -> str:
    """Return how ``parse`` reads the row's backbone."""
    size = f"@{row.image_size}" if row.image_size else "@" if row.views > 1 else ""
    return f"{row.name}{size}" + (f"x{row.views}" if row.views > 1 else "")


def _numbers(row: RankedBackbone) -> str:
    return f"accuracy {row.accuracy:.3f} at {row.milliseconds:.1f} ms an image on one core"


def _prober(attempts: Attempts, size: int) -> Prober:
    return Prober(replace(attempts, sources=sample(attempts.sources, size, seed=attempts.seed)))


def _result(tried: Sequence[Tried]) -> tuple[BackboneChoice, list[RankedBackbone]]:
    if not (working := _working(tried)):
        reasons = "; ".join(f"{one.choice}: {one.row.error}" for one in tried)
        raise InvalidInput(f"no backbone can be used. {reasons}", field="backbone")
    taken = choose(working)
    rows = [replace(one.row, chosen=one is taken) for one in _best(tried, len(tried))]
    return taken.choice, rows + [one.row for one in tried if one.row.error]


def _working(tried: Sequence[Tried]) -> list[Tried]:
    return [one for one in tried if not one.row.error]


def _best(tried: Sequence[Tried], count: int) -> list[Tried]:
    order = sorted(_working(tried), key=lambda one: (-one.row.accuracy, one.row.milliseconds))
    return order[:count]


def _larger(tried: Sequence[Tried]) -> list[BackboneChoice]:
    return [
        replace(one.choice, image_size=size)
        for one in tried
        for size in IMAGE_SIZES
        if size > one.row.image_size
    ]


def _joined(tried: Sequence[Tried]) -> list[BackboneChoice]:
    """Return the two most accurate names as one backbone, at the image size of the best, if any."""
    best = _best(tried, len(tried))
    names = list(dict.fromkeys(one.choice.name for one in best))[:2]
    if len(names) < 2:
        return []
    return [replace(best[0].choice, name="+".join(names), image_size=best[0].row.image_size)]
