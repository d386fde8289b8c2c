"""Learning of a head from exemplars, with its metrics: fit and AddClass share it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.head import Head, Scorer
from topwork.bundle.metrics import Metrics, evaluate
from topwork.bundle.recipe import HeadKind, Recipe
from topwork.errors import Corrupt, NotReady
from topwork.learning.choosing import choose
from topwork.learning.families import FAMILIES
from topwork.learning.judging import Judge, Trial
from topwork.learning.sharing import Threads
from topwork.learning.task import Task
from topwork.learning.unknown import learn_unknown

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

    Large sets are spared some of it: see ``choosing``. What is chosen is learnt from all rows, and
    judged on all folds. Raises Corrupt if an embedding is not finite, NotReady if all were seen or
    are too many for the recipe's head.
    """
    _check(exemplars)
    _use_one_blas_thread()
    judge = Judge(
        embeddings=exemplars.embeddings,
        every_target=exemplars.targets,
        classes=len(exemplars.labels),
        folds=exemplars.folds(seed),
    )
    with Threads(threads) as shared:
        choice = choose(judge, recipe or Recipe(), shared)
        task, best = choice.task, choice.best
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
            normaliser=best.normaliser, scorer=scorer, temperature=best.temperature, unknown=unknown
        ),
        kind=best.kind,
        strength=best.strength,
        metrics=replace(metrics, unknown=unknown_metrics, candidates=choice.candidates),
        judged=Judged(rows=judge.rows, probabilities=probabilities),
    )


def _solve_all(task: Task, best: Trial, threads: Threads) -> Scorer:
    everything = np.ones((1, len(task.targets)), dtype=bool)
    ((scorer,),) = FAMILIES[best.kind].solve(
        task, everything, [best.strength], final=True, threads=threads
    )
    return scorer


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
