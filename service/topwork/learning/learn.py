"""From exemplars to a head and an honest account of it: what fit and AddClass have in common."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.head import Head, Scorer
from topwork.bundle.metrics import Candidate, Metrics, evaluate
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.errors import Corrupt, NotReady
from topwork.learning.families import FAMILIES, KERNEL_ROWS
from topwork.learning.judging import Judge, Trial
from topwork.learning.sharing import Threads
from topwork.learning.task import Task
from topwork.learning.unknown import learn_unknown

NORMALISATIONS: tuple[Normalisation, ...] = ("sqrt_l2", "l2", "standardise")
"""What ``auto`` tries, in the order in which the first of equally good ones is taken.

``none`` was never better than ``l2``, on photos and X-rays, and worse at knowing the unknown.
"""

SCREENING: Mapping[HeadKind, float] = {"logistic": 30.0, "ridge": 2.0}
"""The heads that normalisations are compared by, with their strengths."""

SCREENED = 800
"""Judged rows that are enough for that: as many folds are judged as have them.

Of embeddings of 2,000 photos of flowers by five backbones, on three splits each, that chose as
1,000 did 13 of 15 times; the other two it took the one with 0.01 less log loss.
"""

SCREENED_FROM = 2_000
"""Rows that normalisations are compared on, of more a sample in which classes take turns.

On 1,000 of 2,000 photos of flowers another one was taken: accuracy 0.941 instead of 0.937, but an
AUROC of the unknown of 0.832 instead of 0.854.
"""

SCREENED_PER_LABEL = 20
"""Rows for each label that they are compared on at least."""

LOGISTIC_ROWS = 20_000
"""Exemplars up to which ``auto`` tries logistic regression.

Of 100,000 with 5 labels it was no better than ridge (0.993 and 0.994 of new images right), and took
50 s of processor time and 2.5 GB more.
"""

LOGISTIC_NUMBERS = 1_000_000
"""Exemplars times labels up to which it does: half as many take 15 s of processor time."""

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
    anew at every call. ``threads`` changes how long it takes and nothing else.

    Large sets are spared some of it: above SCREENED_FROM rows normalisations are compared on a
    sample, and ``auto`` tries a kernel up to KERNEL_ROWS, logistic regression up to LOGISTIC_ROWS
    and LOGISTIC_NUMBERS. What is tried is learnt from and judged on all rows. Raises Corrupt if an
    embedding is not finite, NotReady if all were seen or are too many for the recipe's head.
    """
    _check(exemplars)
    _use_one_blas_thread()
    recipe = recipe or Recipe()
    judge = Judge(
        embeddings=exemplars.embeddings,
        every_target=exemplars.targets,
        classes=len(exemplars.labels),
        folds=exemplars.folds(seed),
    )
    heads = _heads(exemplars) if recipe.head == "auto" else (recipe.head,)
    with Threads(threads) as shared:
        normalisation = recipe.normalisation
        if normalisation == "auto":
            screening: HeadKind = "logistic" if _few_numbers(exemplars) else "ridge"
            normalisation = _screened(judge, screening, shared)
        normaliser = make_normaliser(normalisation, exemplars.embeddings)
        task = judge.task(normaliser, shared)
        trials = shared.together(
            *(
                partial(judge.trials, task, normaliser, head, FAMILIES[head].strengths, shared)
                for head in heads
            )
        )
        best = judge.best(trials)
        scorer, told = shared.both(
            partial(_solve_all, task, best, shared),
            partial(
                learn_unknown,
                task,
                FAMILIES[best.kind],
                best.strength,
                labels=exemplars.labels,
                folds=judge.folds,
                highest=best.scores.max(axis=1),
                temperature=best.temperature,
                threads=shared,
            ),
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


def _screened(judge: Judge, head: HeadKind, threads: Threads) -> Normalisation:
    """Return the normalisation that is best for a head, on a sample of many rows."""
    rows = max(SCREENED_FROM, SCREENED_PER_LABEL * judge.classes)
    few = judge.sample(rows).shortened(SCREENED)

    def screen(kind: Normalisation) -> list[Trial]:
        normaliser = make_normaliser(kind, few.embeddings)
        return few.trials(few.task(normaliser), normaliser, head, (SCREENING[head],), threads)

    trials = threads.together(*(partial(screen, kind) for kind in NORMALISATIONS))
    return few.best(trials).normaliser.kind


def _solve_all(task: Task, best: Trial, threads: Threads) -> Scorer:
    everything = np.ones((1, len(task.targets)), dtype=bool)
    ((scorer,),) = FAMILIES[best.kind].solve(
        task, everything, [best.strength], final=True, threads=threads
    )
    return scorer


def _heads(exemplars: Exemplars) -> tuple[HeadKind, ...]:
    """Return the heads that ``auto`` tries: those that are linear first, being cheap to serve.

    Of those, logistic regression was best on new photos after fits on 5 to 60 photos a class.
    """
    closed: tuple[HeadKind, ...] = ("ridge", "nearest_mean")
    linear = ("logistic", *closed) if _few_numbers(exemplars) else closed
    return (*linear, "kernel") if len(exemplars) <= KERNEL_ROWS else linear


def _few_numbers(exemplars: Exemplars) -> bool:
    """Return whether logistic regression takes seconds rather than minutes."""
    rows = len(exemplars)
    return rows <= LOGISTIC_ROWS and rows * len(exemplars.labels) <= LOGISTIC_NUMBERS


def _check(exemplars: Exemplars) -> None:
    embeddings = exemplars.embeddings
    if not (embeddings.max() <= LARGEST and embeddings.min() >= -LARGEST):  # NaN is neither
        odd = ~(np.abs(embeddings) <= LARGEST).all(axis=1)
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
