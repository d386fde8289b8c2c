"""Ranking of backbones by accuracy on the photos and cost of serving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.report.content import RankedBackbone
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.plans import AUTO_POOL, POOLS, TIMM, TOWER, split_pool
from topwork_trainer.backbones.prepare import added_names, missing_backbone
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.fit.paired import paired
from topwork_trainer.ranking.probe import Prober, ProbeResult, sample

SAMPLE = 1000
"""Raising it makes ranking slower and more exact; 1000 photos: a standard error of 0.5 points."""

LEAST_GAIN = 0.005
"""Raising it demands a larger gain in accuracy of a more expensive backbone."""

IMAGE_SIZES = (288, 320)
"""Image sizes that ``auto`` tries in addition to the backbone's own."""


def rank(
    attempts: Attempts, choices: Sequence[BackboneChoice], *, size: int = SAMPLE
) -> tuple[BackboneChoice, list[RankedBackbone]]:
    """Probe backbones on a sample of the photos; return the chosen one and all rows, best first.

    Backbones that fail are listed last, with the error. Raises InvalidInput if all fail.
    """
    prober = _prober(attempts, size)
    return _result([trial for choice in choices for trial in _probe(prober, choice)])


def select(
    attempts: Attempts,
    *,
    name: str | None = None,
    weights: Path | None = None,
    image_size: int | Literal["auto"] | None = None,
    views: int | Literal["auto"] = 1,
    kind: str = "image",
    size: int = SAMPLE,
) -> tuple[BackboneChoice, list[RankedBackbone]]:
    """Search for the best backbone; return it and all rows, best first.

    ``name`` None means all ``candidates`` of the ``kind``. Only backbones for images have variants,
    which are tried for the best ones only: first all names, then larger images for the best two,
    then their tokens if they are vision transformers, then these two pooled, then joined, then two
    views for the backbone chosen so far.
    Raises InvalidInput if all fail.
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
    names = candidates(attempts.repository, kind) if name is None else [name]
    trials = [
        trial for candidate in names for trial in _probe(prober, replace(own, name=candidate))
    ]
    if kind != "image":
        return _result(trials)
    if image_size == "auto":
        trials += map(prober.probe, _larger(_best(trials, 2)))
    if name is None:
        trials += _tokens(prober, trials)
        trials += map(prober.probe, _pooled(trials))
        trials += map(prober.probe, _joined(trials))
    if views == "auto" and (working := _working(trials)):
        trials.append(prober.probe(replace(choose(working).choice, views=2)))
    return _result(trials)


def candidates(repository: Repository, kind: str = "image") -> list[str]:
    """Return the names of the backbones on this machine and of those added to the repository.

    They take inputs of the ``kind``; those on this machine take images. Raises InvalidInput if
    there are none.
    """
    available = backbones.available() if kind == "image" else []
    added = [name for name in added_names(repository, kind) if "@" not in name]
    if not available and not added:
        raise InvalidInput(missing_backbone(kind), field="backbone")
    return available + [name for name in added if name not in available]


def choose(trials: Sequence[ProbeResult]) -> ProbeResult:
    """Return the best trial of at least one successful trial.

    Starts with the cheapest backbone (milliseconds per image) and goes through the others by cost;
    a pooled backbone comes after the same one without its lower stages, whose head is smaller. A
    more expensive backbone replaces the chosen one if it is better beyond noise: on the photos that
    both judged, the gain in accuracy is at least LEAST_GAIN and more than one standard error of the
    paired difference.
    """
    costs: dict[str, float] = {}
    for trial in trials:
        key, milliseconds = _unpooled(trial.choice), trial.row.milliseconds
        costs[key] = min(milliseconds, costs.get(key, milliseconds))
    chosen, *expensive = sorted(
        trials,
        key=lambda trial: (costs[_unpooled(trial.choice)], trial.row.width, str(trial.choice)),
    )
    for trial in expensive:
        shared = [name for name in chosen.right if name in trial.right]
        difference = paired(
            np.array([trial.right[name] for name in shared], dtype=bool),
            np.array([chosen.right[name] for name in shared], dtype=bool),
        )
        error = (difference.high - difference.low) / (2 * 1.959964)
        if difference.gain >= LEAST_GAIN and difference.gain > error:
            chosen = trial
    return chosen


def explain(ranked: Sequence[RankedBackbone]) -> str:
    """Return a sentence with the gain and cost of the chosen backbone over the cheapest."""
    working = [row for row in ranked if not row.error]
    chosen = next(row for row in working if row.chosen)
    cheapest = min(working, key=lambda row: (row.milliseconds, not row.chosen))
    if chosen is cheapest:
        return (
            f"{notation(chosen)} is chosen: {_numbers(chosen)}; no other backbone is "
            "better beyond noise"
        )
    return (
        f"{notation(chosen)} is chosen: {_numbers(chosen)}, which is "
        f"{100 * (chosen.accuracy - cheapest.accuracy):+.1f} points for "
        f"{chosen.milliseconds / cheapest.milliseconds:.1f} times the cost of the cheapest, "
        f"{notation(cheapest)} ({_numbers(cheapest)})"
    )


def notation(row: RankedBackbone) -> str:
    """Return the backbone of a row in the notation that ``backbones.parse`` reads."""
    size = f"@{row.image_size}" if row.image_size else "@" if row.views > 1 else ""
    return f"{row.name}{size}" + (f"x{row.views}" if row.views > 1 else "")


def _numbers(row: RankedBackbone) -> str:
    return f"accuracy {row.accuracy:.3f} at {row.milliseconds:.1f} ms per image on one core"


def _prober(attempts: Attempts, size: int) -> Prober:
    return Prober(replace(attempts, sources=sample(attempts.sources, size, seed=attempts.seed)))


def _probe(prober: Prober, choice: BackboneChoice) -> list[ProbeResult]:
    """Probe a backbone, or all embeddings of a vision transformer if its name asks for that."""
    name = choice.name.removesuffix(AUTO_POOL)
    if name == choice.name:
        return [prober.probe(choice)]
    return prober.probe_pools(replace(choice, name=name))


def _tokens(prober: Prober, trials: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Probe the other embeddings of the two most accurate backbones that may have tokens."""
    return [
        other
        for trial in _leaders(trials)
        if trial.choice.name.startswith((TIMM, TOWER)) and trial.choice.name == _network(trial)
        for other in prober.probe_pools(trial.choice)
        if not other.row.error and other.choice != trial.choice
    ]


def _result(trials: Sequence[ProbeResult]) -> tuple[BackboneChoice, list[RankedBackbone]]:
    if not (working := _working(trials)):
        reasons = "; ".join(f"{trial.choice}: {trial.row.error}" for trial in trials)
        raise InvalidInput(f"no backbone can be used. {reasons}", field="backbone")
    chosen = choose(working)
    rows = [replace(trial.row, chosen=trial is chosen) for trial in _best(trials, len(trials))]
    return chosen.choice, rows + [trial.row for trial in trials if trial.row.error]


def _working(trials: Sequence[ProbeResult]) -> list[ProbeResult]:
    return [trial for trial in trials if not trial.row.error]


def _best(trials: Sequence[ProbeResult], count: int) -> list[ProbeResult]:
    working = _working(trials)
    return sorted(working, key=lambda trial: (-trial.row.accuracy, trial.row.milliseconds))[:count]


def _larger(trials: Sequence[ProbeResult]) -> list[BackboneChoice]:
    return [
        replace(trial.choice, image_size=size)
        for trial in trials
        for size in IMAGE_SIZES
        if size > trial.row.image_size
    ]


def _pooled(trials: Sequence[ProbeResult]) -> list[BackboneChoice]:
    """Return the two most accurate backbones, pooled."""
    return [
        replace(trial.choice, name=trial.choice.name + backbones.POOLED)
        for trial in _leaders(trials)
    ]


def _joined(trials: Sequence[ProbeResult]) -> list[BackboneChoice]:
    """Return the two most accurate backbones joined, at the image size of the best; [] if one."""
    best = _leaders(trials)
    if len(best) < 2:
        return []
    name = "+".join(trial.choice.name for trial in best)
    return [replace(best[0].choice, name=name, image_size=best[0].row.image_size)]


def _leaders(trials: Sequence[ProbeResult]) -> list[ProbeResult]:
    """Return the best trial, and the best of another network, at any size, pooled or not."""
    best = _best(trials, len(trials))
    networks = list(map(_network, best))
    return [best[networks.index(name)] for name in dict.fromkeys(networks)][:2]


def _network(trial: ProbeResult) -> str:
    """Return the name of a backbone without its embedding."""
    return split_pool(trial.choice.name.removesuffix(backbones.POOLED))[0]


def _unpooled(choice: BackboneChoice) -> str:
    """Return the notation of a choice without the suffixes of its backbones' embeddings."""
    return _SUFFIXES.sub("", str(choice))


_SUFFIXES = re.compile("|".join([backbones.POOLED, *(f":{pool}(?![-\\w])" for pool in POOLS)]))
