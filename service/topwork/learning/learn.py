"""Learning of a head from exemplars, with its metrics; used by fit and AddClass."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork.bundle.embedding_rows import is_large
from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.head import Head, Scorer
from topwork.bundle.metrics import Metrics, evaluate
from topwork.bundle.recipe import HeadKind, Recipe
from topwork.errors import Corrupt, NotReady
from topwork.learning import streamed
from topwork.learning.calibration import FULL_SET
from topwork.learning.cross_validation import CrossValidation, Trial
from topwork.learning.families import Family
from topwork.learning.head_selection import choose
from topwork.learning.parallel import Threads
from topwork.learning.streamed import MAX_VALUE, BrokenEmbedding, LargeSet, is_valid
from topwork.learning.task import Task
from topwork.learning.unknown import learn_unknown

_BLOCK_ROWS = 4096
"""Rows per block; raising it uses more memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Cross-validated predictions of J exemplars, each by a head trained without its fold."""

    rows: NDArray[np.int64]
    """(J,), exemplar indices: all that the backbone was not fine-tuned on, or a sample of them if
    the set is large."""
    probabilities: NDArray[np.float32]
    """(J, C), calibrated."""
    folds: NDArray[np.int64] | None = None
    """(N,), folds of all exemplars; None: they were not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Head with its cross-validated metrics."""

    head: Head
    kind: HeadKind
    strength: float
    """Chosen inverse regularisation strength."""
    metrics: Metrics
    judged: Judged
    notes: tuple[str, ...] = ()
    """Sentences for the report about limits of this size."""


def learn(
    exemplars: Exemplars, *, seed: int, recipe: Recipe | None = None, threads: int = 1
) -> Learned:
    """Return the head of these exemplars: a function of the set, ``seed`` and ``recipe`` alone.

    Cold start, fixed order, fixed algorithm: the result does not depend on the order in which
    classes were added. Whatever the recipe leaves open (kind of head, normalisation), strength,
    temperature and unknown threshold are chosen by cross-validation at every call. The number of
    ``threads`` does not change the result.

    Large sets are sampled for the choice; see ``head_selection``. The chosen head is learnt from
    all rows and evaluated on all folds; if the embeddings and scores are too large for memory, it
    is evaluated on a sample, see ``streamed``. Raises Corrupt if an embedding is not finite,
    NotReady if all exemplars were seen by fine-tuning or are too many for the recipe's head.
    """
    recipe = recipe or Recipe()
    if exemplars.seen.all():
        raise NotReady(
            f"the backbone was fine-tuned on all {len(exemplars)} images; none is left to evaluate",
            reason="NOTHING_TO_JUDGE",
        )
    _use_one_blas_thread()
    folds = exemplars.folds(seed)
    with Threads(threads) as pool:
        large = _large_set(exemplars, folds, recipe)
        sample = slice(None) if large is None else large.sample
        validation = CrossValidation(
            embeddings=exemplars.embedding_rows[sample],
            every_target=exemplars.targets[sample],
            classes=len(exemplars.labels),
            folds=folds[sample],
        )
        if not is_valid(validation.embeddings):
            raise _broken(exemplars, pool)
        try:
            choice = choose(validation, recipe, pool, large)
        except BrokenEmbedding:
            raise _broken(exemplars, pool) from None
        validation, task, best = choice.validation, choice.task, choice.best
        family = validation.families[best.kind]
        temperature = FULL_SET * best.temperature
        scorer, detection = pool.run_both(
            partial(_solve_all, task, family, best, pool),
            partial(
                learn_unknown,
                task,
                family,
                best.strength,
                labels=exemplars.labels,
                folds=validation.folds,
                scores=best.scores,
                temperature=temperature,
                threads=pool,
            ),
        )
        judged = Judged(rows=validation.rows, probabilities=best.probabilities(), folds=folds)
        if large is not None:
            scored = large.probabilities(validation, task, best, pool)
            judged = replace(judged, rows=large.judged, probabilities=scored)
    unknown, unknown_metrics = detection or (None, None)
    metrics = evaluate(
        exemplars.targets[judged.rows], judged.probabilities, exemplars.labels, folds=FOLDS
    )
    return Learned(
        head=Head(
            normaliser=best.normaliser, scorer=scorer, temperature=temperature, unknown=unknown
        ),
        kind=best.kind,
        strength=best.strength,
        metrics=replace(metrics, unknown=unknown_metrics, candidates=choice.candidates),
        judged=judged,
        notes=() if large is None else (large.note(),),
    )


def _large_set(exemplars: Exemplars, folds: NDArray[np.int64], recipe: Recipe) -> LargeSet | None:
    """Return the set if it is too large for memory. Raises NotReady if the recipe's head is."""
    rows, width, classes = *exemplars.embedding_rows.shape, len(exemplars.labels)
    if not is_large(rows, width, classes):
        return None
    if recipe.head not in {"auto", *streamed.KINDS}:
        raise NotReady(
            f"{rows:,} exemplars of {classes:,} labels are too many for the head {recipe.head!r}: "
            f"choose auto, {' or '.join(streamed.KINDS)}",
            reason="TOO_MANY_FOR_HEAD",
        )
    return LargeSet(
        embeddings=exemplars.embedding_rows,
        targets=exemplars.targets,
        classes=classes,
        folds=folds,
    )


def _solve_all(task: Task, family: Family, best: Trial, threads: Threads) -> Scorer:
    everything = np.ones((1, len(task.targets)), dtype=bool)
    ((scorer,),) = family.solve(task, everything, [best.strength], final=True, threads=threads)
    return scorer


def _broken(exemplars: Exemplars, threads: Threads) -> Corrupt:
    """Return the error of exemplars some of whose embeddings are not valid."""
    by_label = np.argsort(exemplars.targets, kind="stable")  # as they are stored

    def find(start: int) -> NDArray[np.int64]:
        rows = by_label[start : start + _BLOCK_ROWS]
        return rows[~(np.abs(exemplars.embedding_rows[rows]) <= MAX_VALUE).all(axis=1)]

    found = threads.map(find, range(0, len(exemplars), _BLOCK_ROWS))
    invalid = np.sort(np.concatenate(found))
    row = int(invalid[0])
    return Corrupt(
        f"{len(invalid)} of {len(exemplars)} embeddings have values that are not "
        f"finite or beyond {MAX_VALUE:g}, the first is that of {exemplars.names[row]!r} "
        f"({exemplars.labels[exemplars.targets[row]]}): the backbone is broken"
    )


@functools.cache
def _use_one_blas_thread() -> None:
    """Limit this process to one BLAS thread permanently, since solves run in parallel.

    The result does not depend on the number of cores, and on a busy machine two threads that wait
    for each other took 4.5 s instead of 0.9 s.
    """
    threadpool_limits(limits=1, user_api="blas")
