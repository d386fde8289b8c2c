"""Choice of normalisation, head and strength: a race over the folds of cross-validation.

All that is tried is judged on the first folds, and only what is not clearly worse there on the
others: the loser of a race need not run to the end for that to be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from topwork.bundle.features import make as make_normaliser
from topwork.bundle.metrics import TriedHead
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.learning.families import FAMILIES, KERNEL_ROWS
from topwork.learning.judging import Judge, Trial
from topwork.learning.sharing import Threads
from topwork.learning.task import Task

NORMALISATIONS: tuple[Normalisation, ...] = ("sqrt_l2", "l2", "standardise")
"""What ``auto`` tries, in the order in which the first of equally good ones is taken.

``none`` was never better than ``l2``, on photos and X-rays, and worse at knowing the unknown.
"""

SCREENING: Mapping[HeadKind, float] = {"logistic": 30.0, "ridge": 2.0}
"""The heads that normalisations are compared by, with their strengths."""

SCREENED_FROM = 2_000
"""Rows that normalisations are compared on, of more a sample in which classes take turns.

On 1,000 of 2,000 photos of flowers another one was taken: accuracy 0.941 instead of 0.937, but an
AUROC of the unknown of 0.832 instead of 0.854.
"""

SCREENED_PER_LABEL = 20
"""Rows for each label that they are compared on at least."""

FIRST: Mapping[HeadKind, tuple[float, ...]] = {"logistic": (30.0,)}
"""Strengths that must not be clearly worse for the others of a head to be tried at all.

Only where others cost as much again; closed forms share most of the work.
"""

SLACK = 0.1
"""Share of the least loss that another strength may bring.

In the 84 cases below the first one of logistic regression was at most 0.094 above its best.
"""

RACED = 700
"""Judged rows that are enough to drop what is clearly worse: as many folds have a say first."""

CLEARLY = 2.0
"""Standard errors of a paired difference that make it clear.

Of flowers by three backbones and X-rays by two, on three splits, whole and in part, by each
normalisation, it took the head that all heads on all folds would give 82 of 84 times, 73 times with
the same strength. The other 11 differed by -0.004 to 0.009 in log loss, by -0.003 to 0.006 in
accuracy and in the mean by nothing.
"""

LOGISTIC_ROWS = 20_000
"""Exemplars up to which ``auto`` tries logistic regression.

Of 100,000 with 5 labels it was no better than ridge (0.993 and 0.994 of new images right), and took
50 s of processor time and 2.5 GB more.
"""

LOGISTIC_NUMBERS = 1_000_000
"""Exemplars times labels up to which it does: half as many take 15 s of processor time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChoice:
    """What suits the exemplars."""

    task: Task
    """The exemplars by the best trial's normaliser."""
    best: Trial
    candidates: tuple[TriedHead, ...]
    """All heads and strengths that were tried with it, in order."""


def choose(judge: Judge, recipe: Recipe, threads: Threads) -> HeadChoice:
    """Return the best head for what the recipe leaves open: a function of the exemplars alone."""
    heads = _heads(judge) if recipe.head == "auto" else (recipe.head,)
    short = judge.shortened(RACED)
    tried: dict[HeadKind, list[Trial]] = {head: [] for head in heads}
    if recipe.normalisation == "auto":
        task, trial = _screened(judge, threads)
        normaliser = trial.normaliser
        if len(task.targets) == len(judge.every_target):
            tried.get(trial.kind, []).append(trial)
        else:  # of a sample
            normaliser = make_normaliser(normaliser.kind, judge.embeddings)
            task = judge.task(normaliser, threads)
    else:
        normaliser = make_normaliser(recipe.normalisation, judge.embeddings)
        task = judge.task(normaliser, threads)

    def run(heads: Sequence[HeadKind], strengths: Mapping[HeadKind, tuple[float, ...]]) -> None:
        """Try what was not tried yet."""
        calls = []
        for head in heads:
            known = {trial.strength for trial in tried[head]}
            own = strengths.get(head, FAMILIES[head].strengths)
            new = [one for one in own if one not in known]
            if new:
                calls.append(partial(short.trials, task, normaliser, head, new, threads))
        for trials in threads.together(*calls):
            tried[trials[0].kind] += trials

    run(heads, FIRST)
    run([one.kind for one in short.contenders(tried.values(), errors=CLEARLY, slack=SLACK)], {})
    finished = short.contenders(tried.values(), errors=CLEARLY)
    if len(short.rows) < len(judge.rows):
        finished = threads.together(
            *(partial(judge.completed, trial, short, task, threads) for trial in finished)
        )
    best = judge.best([[trial] for trial in finished])
    ends = {(trial.kind, trial.strength): trial for trial in finished}
    candidates = []
    for head in heads:
        for trial in sorted(tried[head], key=lambda one: one.strength):
            end = ends.get((trial.kind, trial.strength))
            candidates.append(
                _candidate(short, trial, chosen=False)
                if end is None
                else _candidate(judge, end, chosen=end is best)
            )
    return HeadChoice(task=task, best=best, candidates=tuple(candidates))


def _screened(judge: Judge, threads: Threads) -> tuple[Task, Trial]:
    """Return the trial of the best normalisation, on a sample of many rows, and its task."""
    rows = max(SCREENED_FROM, SCREENED_PER_LABEL * judge.classes)
    few = judge.sample(rows).shortened(RACED)
    head: HeadKind = "logistic" if _few_numbers(judge) else "ridge"

    def screen(kind: Normalisation) -> tuple[Task, Trial]:
        normaliser = make_normaliser(kind, few.embeddings)
        task = few.task(normaliser)
        (trial,) = few.trials(task, normaliser, head, (SCREENING[head],), threads)
        return task, trial

    screened = threads.together(*(partial(screen, kind) for kind in NORMALISATIONS))
    best = few.best([[trial] for _, trial in screened])
    return next((task, trial) for task, trial in screened if trial is best)


def _candidate(judge: Judge, trial: Trial, *, chosen: bool) -> TriedHead:
    return TriedHead(
        head=trial.kind,
        normalisation=trial.normaliser.kind,
        strength=trial.strength,
        accuracy=judge.accuracy(trial),
        log_loss=judge.loss(trial),
        images=len(judge.rows),
        chosen=chosen,
    )


def _heads(judge: Judge) -> tuple[HeadKind, ...]:
    """Return the heads that ``auto`` tries: those that are linear first, being cheap to serve.

    Of those, logistic regression was best on new photos after fits on 5 to 60 photos a class.
    """
    closed: tuple[HeadKind, ...] = ("ridge", "nearest_mean")
    linear = ("logistic", *closed) if _few_numbers(judge) else closed
    return (*linear, "kernel") if len(judge.every_target) <= KERNEL_ROWS else linear


def _few_numbers(judge: Judge) -> bool:
    """Return whether logistic regression takes seconds rather than minutes."""
    rows = len(judge.every_target)
    return rows <= LOGISTIC_ROWS and rows * judge.classes <= LOGISTIC_NUMBERS
