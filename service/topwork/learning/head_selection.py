"""Selection of normalisation, head and strength by racing over the folds of cross-validation.

All candidates are evaluated on the first folds; candidates that are clearly worse there are not
evaluated on the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from topwork.bundle.features import Normaliser
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.metrics import TriedHead
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.learning import streamed
from topwork.learning.cross_validation import CrossValidation, Trial
from topwork.learning.families import FAMILIES
from topwork.learning.parallel import Threads
from topwork.learning.streamed import LargeSet
from topwork.learning.task import Task

NORMALISATIONS: tuple[Normalisation, ...] = ("sqrt_l2", "l2", "standardise")
"""Candidates of ``auto``; of equally good normalisations the first is chosen.

``none`` was never better than ``l2``, on photos and X-rays, and worse at detecting the unknown.
"""

SCREENING: Mapping[HeadKind, float] = {"logistic": 30.0, "ridge": 2.0}
"""Heads for comparing normalisations, with their strengths."""

SCREENING_ROWS = 3_000
"""Rows for comparing normalisations; larger sets are sampled, balanced across classes.

Lowering it solves the first logistic regression of more sets twice: on the sample and on all rows.

With 1,000 of 2,000 photos of flowers another normalisation was chosen: accuracy 0.941 instead of
0.937, but an AUROC of the unknown of 0.832 instead of 0.854.
"""

SCREENING_ROWS_PER_LABEL = 20
"""Smallest number of rows per label for comparing normalisations."""

FIRST_STRENGTHS: Mapping[HeadKind, tuple[float, ...]] = {"logistic": (30.0,)}
"""Strengths that are tried first; a head that is clearly worse with them is dropped.

Only for heads whose other strengths cost as much again; closed forms share most of the work.
"""

SLACK = 0.1
"""Relative improvement of the least loss that another strength is expected to bring at most.

In the 84 cases below the first strength of logistic regression was at most 0.094 above its best. In
30 more, with Platt's target probabilities, any slack from 0.02 to 9 chose the same heads.
"""

RACE_ROWS = 700
"""Evaluated rows after which clearly worse candidates are dropped; rounded up to whole folds."""

CLEAR_ERRORS = 2.0
"""Standard errors of a paired difference above which a candidate is clearly worse.

With flowers on three backbones and X-rays on two, three splits, all and some images, and each
normalisation, the race chose the same head as all heads on all folds in 82 of 84 cases, in 73 with
the same strength. The other 11 differed by -0.004 to 0.009 in log loss, by -0.003 to 0.006 in
accuracy, and on average by 0.
"""

KERNEL_ROWS = 20_000
"""Largest number of exemplars for which ``auto`` tries a kernel.

With 10,000 exemplars it took 100 MB more, and with 50 labels a quarter more processor time.
"""

LOGISTIC_ROWS = 20_000
"""Largest number of exemplars for which ``auto`` tries logistic regression.

On 100,000 exemplars with 5 labels it was no better than ridge (accuracy on new images 0.993 and
0.994), and took 50 s of processor time and 2.5 GB more.
"""

LOGISTIC_NUMBERS = 1_000_000
"""Largest product of exemplars and labels for which ``auto`` tries logistic regression.

Half of it takes 15 s of processor time.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChoice:
    """Selected head, with the candidates."""

    validation: CrossValidation
    """With the families that the best trial was solved by."""
    task: Task
    """Exemplars normalised by the best trial's normaliser."""
    best: Trial
    candidates: tuple[TriedHead, ...]
    """All heads and strengths that were tried with this normaliser, in order."""


def choose(
    validation: CrossValidation,
    recipe: Recipe,
    threads: Threads,
    large: LargeSet | None = None,
) -> HeadChoice:
    """Return the best head within the recipe: a function of the exemplars alone.

    ``validation`` is that of the sample of a ``large`` set, whose heads learn from all of its rows.
    """
    candidates_of_auto = _heads(validation) if large is None else streamed.KINDS
    heads = candidates_of_auto if recipe.head == "auto" else (recipe.head,)
    tried: dict[HeadKind, list[Trial]] = {head: [] for head in heads}

    def fit(kind: Normalisation) -> Normaliser:
        if large is not None:
            return large.normaliser(kind, threads)
        return make_normaliser(kind, validation.embeddings)

    if recipe.normalisation == "auto":
        task, trial = _screen_normalisations(validation, threads)
        normaliser = trial.normaliser
        if large is None and len(task.targets) == len(validation.every_target):
            tried.get(trial.kind, []).append(trial)
        else:  # the trial is on a sample
            normaliser = fit(normaliser.kind)
            task = validation.task(normaliser, threads)
    else:
        normaliser = fit(recipe.normalisation)
        task = validation.task(normaliser, threads)
    if large is not None:
        validation = replace(validation, families=large.families(normaliser, threads))
    race = validation.first_folds(RACE_ROWS)

    def run(heads: Sequence[HeadKind], strengths: Mapping[HeadKind, tuple[float, ...]]) -> None:
        """Try the heads with all strengths that were not tried yet."""
        calls = []
        for head in heads:
            known = {trial.strength for trial in tried[head]}
            own = strengths.get(head, FAMILIES[head].strengths)
            new = [strength for strength in own if strength not in known]
            if new:
                calls.append(partial(race.trials, task, normaliser, head, new, threads))
        for trials in threads.run_all(*calls):
            tried[trials[0].kind] += trials

    run(heads, FIRST_STRENGTHS)
    run(
        [trial.kind for trial in race.contenders(tried.values(), errors=CLEAR_ERRORS, slack=SLACK)],
        {},
    )
    finished = race.contenders(tried.values(), errors=CLEAR_ERRORS)
    if len(race.rows) < len(validation.rows):
        finished = threads.run_all(
            *(partial(validation.complete, trial, race, task, threads) for trial in finished)
        )
    best = validation.best([[trial] for trial in finished])
    ends = {(trial.kind, trial.strength): trial for trial in finished}
    candidates = []
    for head in heads:
        for trial in sorted(tried[head], key=lambda trial: trial.strength):
            end = ends.get((trial.kind, trial.strength))
            candidates.append(
                _candidate(race, trial, chosen=False)
                if end is None
                else _candidate(validation, end, chosen=end is best)
            )
    return HeadChoice(validation=validation, task=task, best=best, candidates=tuple(candidates))


def _screen_normalisations(validation: CrossValidation, threads: Threads) -> tuple[Task, Trial]:
    """Return the task and the trial of the best normalisation, on a sample of the rows."""
    rows = max(SCREENING_ROWS, SCREENING_ROWS_PER_LABEL * validation.classes)
    sample = validation.sample(rows).first_folds(RACE_ROWS)
    head: HeadKind = "logistic" if _logistic_is_fast(validation) else "ridge"

    def screen(kind: Normalisation) -> tuple[Task, Trial]:
        normaliser = make_normaliser(kind, sample.embeddings)
        task = sample.task(normaliser)
        (trial,) = sample.trials(task, normaliser, head, (SCREENING[head],), threads)
        return task, trial

    screenings = threads.run_all(*(partial(screen, kind) for kind in NORMALISATIONS))
    best = sample.best([[trial] for _, trial in screenings])
    return next((task, trial) for task, trial in screenings if trial is best)


def _candidate(validation: CrossValidation, trial: Trial, *, chosen: bool) -> TriedHead:
    return TriedHead(
        head=trial.kind,
        normalisation=trial.normaliser.kind,
        strength=trial.strength,
        accuracy=validation.accuracy(trial),
        log_loss=validation.loss(trial),
        images=len(validation.rows),
        chosen=chosen,
    )


def _heads(validation: CrossValidation) -> tuple[HeadKind, ...]:
    """Return the candidates of ``auto``: linear heads first, since they are cheap to serve.

    Of the linear heads, logistic regression was best on new photos after fits on 5 to 60 photos
    per class. Linear discriminant analysis with a shrunken covariance as another candidate changed
    the accuracy on new photos by -0.2 to 0.1 points (flowers, X-rays, 5 to 50 photos per class, 16
    draws each), and made the calibration worse.
    """
    closed: tuple[HeadKind, ...] = ("ridge", "nearest_mean")
    linear = ("logistic", *closed) if _logistic_is_fast(validation) else closed
    return (*linear, "kernel") if len(validation.every_target) <= KERNEL_ROWS else linear


def _logistic_is_fast(validation: CrossValidation) -> bool:
    """Return True if logistic regression takes seconds rather than minutes."""
    rows = len(validation.every_target)
    return rows <= LOGISTIC_ROWS and rows * validation.classes <= LOGISTIC_NUMBERS
