"""Learning of a head from exemplars, with its metrics; used by fit and AddClass."""

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
from topwork.learning.calibration import FULL_SET
from topwork.learning.cross_validation import CrossValidation, Trial
from topwork.learning.families import FAMILIES
from topwork.learning.head_selection import choose
from topwork.learning.parallel import Threads
from topwork.learning.task import Task
from topwork.learning.unknown import learn_unknown

MAX_VALUE = 1e15
"""Largest magnitude of an embedding's values; larger squares may overflow float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Cross-validated predictions of J exemplars, each by a head trained without its fold."""

    rows: NDArray[np.int64]
    """(J,), exemplar indices: all that the backbone was not fine-tuned on."""
    probabilities: NDArray[np.float32]
    """(J, C), calibrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Head with its cross-validated metrics."""

    head: Head
    kind: HeadKind
    strength: float
    """Chosen inverse regularisation strength."""
    metrics: Metrics
    judged: Judged


def learn(
    exemplars: Exemplars, *, seed: int, recipe: Recipe | None = None, threads: int = 1
) -> Learned:
    """Return the head of these exemplars: a function of the set, ``seed`` and ``recipe`` alone.

    Cold start, fixed order, fixed algorithm: the result does not depend on the order in which
    classes were added. Whatever the recipe leaves open (kind of head, normalisation), strength,
    temperature and unknown threshold are chosen by cross-validation at every call. The number of
    ``threads`` does not change the result.

    Large sets are sampled for the choice; see ``head_selection``. The chosen head is learnt from
    all rows and evaluated on all folds. Raises Corrupt if an embedding is not finite, NotReady if
    all exemplars were seen by fine-tuning or are too many for the recipe's head.
    """
    _check(exemplars)
    _use_one_blas_thread()
    validation = CrossValidation(
        embeddings=exemplars.embeddings,
        every_target=exemplars.targets,
        classes=len(exemplars.labels),
        folds=exemplars.folds(seed),
    )
    with Threads(threads) as pool:
        choice = choose(validation, recipe or Recipe(), pool)
        task, best = choice.task, choice.best
        temperature = FULL_SET * best.temperature
        scorer, detection = pool.run_both(
            partial(_solve_all, task, best, pool),
            partial(
                learn_unknown,
                task,
                FAMILIES[best.kind],
                best.strength,
                labels=exemplars.labels,
                folds=validation.folds,
                scores=best.scores,
                temperature=temperature,
                threads=pool,
            ),
        )
    unknown, unknown_metrics = detection or (None, None)
    probabilities = best.probabilities()
    metrics = evaluate(validation.targets, probabilities, exemplars.labels, folds=FOLDS)
    return Learned(
        head=Head(
            normaliser=best.normaliser, scorer=scorer, temperature=temperature, unknown=unknown
        ),
        kind=best.kind,
        strength=best.strength,
        metrics=replace(metrics, unknown=unknown_metrics, candidates=choice.candidates),
        judged=Judged(rows=validation.rows, probabilities=probabilities),
    )


def _solve_all(task: Task, best: Trial, threads: Threads) -> Scorer:
    everything = np.ones((1, len(task.targets)), dtype=bool)
    ((scorer,),) = FAMILIES[best.kind].solve(
        task, everything, [best.strength], final=True, threads=threads
    )
    return scorer


def _check(exemplars: Exemplars) -> None:
    embeddings = exemplars.embeddings
    if not (embeddings.max() <= MAX_VALUE and embeddings.min() >= -MAX_VALUE):  # False for NaN
        invalid = ~(np.abs(embeddings) <= MAX_VALUE).all(axis=1)
        row = int(invalid.argmax())
        raise Corrupt(
            f"{np.count_nonzero(invalid)} of {len(exemplars)} embeddings have values that are not "
            f"finite or beyond {MAX_VALUE:g}, the first is that of {exemplars.names[row]!r} "
            f"({exemplars.labels[exemplars.targets[row]]}): the backbone is broken"
        )
    if exemplars.seen.all():
        raise NotReady(
            f"the backbone was fine-tuned on all {len(exemplars)} images; none is left to evaluate",
            reason="NOTHING_TO_JUDGE",
        )


@functools.cache
def _use_one_blas_thread() -> None:
    """Limit this process to one BLAS thread permanently, since solves run in parallel.

    The result does not depend on the number of cores, and on a busy machine two threads that wait
    for each other took 4.5 s instead of 0.9 s.
    """
    threadpool_limits(limits=1, user_api="blas")
