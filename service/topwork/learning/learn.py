"""From exemplars to a head and an honest account of it: what fit and AddClass have in common."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.features import Normaliser
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.head import Head
from topwork.bundle.metrics import Candidate, Metrics, evaluate
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.errors import Corrupt, NotReady
from topwork.learning.families import FAMILIES, KERNEL_ROWS
from topwork.learning.judging import Judge, Trial
from topwork.learning.unknown import learn_unknown

NORMALISATIONS: tuple[Normalisation, ...] = ("sqrt_l2", "l2", "standardise")
"""What ``auto`` tries, in the order in which the first of equally good ones is taken.

``none`` was never better than ``l2``, on photos and X-rays, and worse at knowing the unknown.
"""

SCREENING = 30.0
"""The strength of the logistic regressions that normalisations are compared by."""

SCREENED = 1_000
"""Judged rows that are enough for that: as many folds are judged as have them."""

LARGEST = 1e15
"""The largest value of an embedding, whose square still fits into float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """J exemplars, each judged by a head that saw no image of its fold."""

    rows: NDArray[np.int64]
    """(J,), which exemplars: all that the backbone was not fine-tuned on."""
    probabilities: NDArray[np.float32]
    """(J, C), calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A head, and how good it is on images that it did not see."""

    head: Head
    kind: HeadKind
    strength: float
    """The inverse regularisation that was chosen."""
    metrics: Metrics
    judged: Judged


def learn(
    exemplars: Exemplars, *, seed: int, recipe: Recipe | None = None, threads: int = 1
) -> Learned:
    """Return the head of these exemplars: a function of the set, ``seed`` and ``recipe`` alone.

    Cold start, fixed order, fixed algorithm: a class that was added later leaves no other trace
    than one that was there from the start. What the recipe leaves open (kind of head and
    normalisation), strength, temperature and what counts as unknown are chosen by cross-validation,
    anew at every call. ``threads`` changes how long it takes and nothing else. Raises Corrupt if
    an embedding is not finite, NotReady if all were seen or are too many for the recipe's head.
    """
    _check(exemplars)
    _use_one_blas_thread()
    recipe = recipe or Recipe()
    judge = Judge(exemplars=exemplars, folds=exemplars.folds(seed))
    with ThreadPoolExecutor(threads) as pool:
        kinds = NORMALISATIONS if recipe.normalisation == "auto" else (recipe.normalisation,)
        normalisers = [make_normaliser(kind, exemplars.embeddings) for kind in kinds]
        task, normaliser = judge.task(normalisers[0]), normalisers[0]
        if len(kinds) > 1:
            few = judge.shortened(SCREENED)
            screened = few.best(list(pool.map(lambda one: _screen(few, one), normalisers)))
            task, normaliser = screened.task, screened.normaliser
        heads = _heads(len(exemplars)) if recipe.head == "auto" else (recipe.head,)
        trials = list(
            pool.map(
                lambda kind: judge.trials(task, normaliser, kind, FAMILIES[kind].strengths), heads
            )
        )
    best = judge.best(trials)
    everything = np.ones((1, len(exemplars)), dtype=bool)
    ((scorer,),) = FAMILIES[best.kind].solve(task, everything, [best.strength], final=True)
    told = learn_unknown(
        task,
        FAMILIES[best.kind],
        best.strength,
        labels=exemplars.labels,
        folds=judge.folds,
        highest=best.scores.max(axis=1),
        temperature=best.temperature,
    )
    unknown, unknown_metrics = told or (None, None)
    probabilities = best.probabilities()
    metrics = evaluate(judge.targets, probabilities, exemplars.labels, folds=FOLDS)
    return Learned(
        head=Head(
            normaliser=normaliser, scorer=scorer, temperature=best.temperature, unknown=unknown
        ),
        kind=best.kind,
        strength=best.strength,
        metrics=replace(
            metrics,
            unknown=unknown_metrics,
            candidates=tuple(
                Candidate(
                    head=trial.kind,
                    normalisation=normaliser.kind,
                    strength=trial.strength,
                    accuracy=judge.accuracy(trial),
                    log_loss=judge.loss(trial),
                    chosen=trial is best,
                )
                for group in trials
                for trial in group
            ),
        ),
        judged=Judged(rows=judge.rows, probabilities=probabilities),
    )


def _screen(judge: Judge, normaliser: Normaliser) -> list[Trial]:
    return judge.trials(judge.task(normaliser), normaliser, "logistic", (SCREENING,))


def _heads(rows: int) -> tuple[HeadKind, ...]:
    """Return the heads that ``auto`` tries: those that are linear first, being cheap to serve.

    Of those, logistic regression was best on new photos after fits on 5 to 60 photos a class.
    """
    linear: tuple[HeadKind, ...] = ("logistic", "ridge", "nearest_mean")
    return (*linear, "kernel") if rows <= KERNEL_ROWS else linear


def _check(exemplars: Exemplars) -> None:
    odd = ~(np.abs(exemplars.embeddings) <= LARGEST).all(axis=1)  # which NaN is, too
    if odd.any():
        row = int(odd.argmax())
        raise Corrupt(
            f"{np.count_nonzero(odd)} of {len(exemplars)} embeddings have values that are not "
            f"finite or beyond {LARGEST:g}, first that of {exemplars.names[row]!r} "
            f"({exemplars.labels[exemplars.targets[row]]}): the backbone is broken"
        )
    if exemplars.seen.all():
        raise NotReady(
            f"the backbone was fine-tuned on all {len(exemplars)} images; keep some to judge by",
            reason="NOTHING_TO_JUDGE",
        )


@functools.cache
def _use_one_blas_thread() -> None:
    """Limit this process to one BLAS thread, for good: solves may run side by side.

    The result then depends on no core count, and on a busy machine two threads that wait for each
    other took 4.5 s where one took 0.9 s.
    """
    threadpool_limits(limits=1, user_api="blas")
