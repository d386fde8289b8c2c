"""From exemplars to a head and an honest account of it: what fit and AddClass have in common."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.head import Head, normalise, softmax
from topwork.bundle.metrics import Metrics, evaluate
from topwork.learning.logistic import balanced_weights, solve

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""The inverse regularisations (C) that cross-validation chooses from."""

GRID_TOLERANCE = 1e-3
"""Of the cross-validation's solves; 1e-2 moved log losses by more than strengths differ in it."""


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
    metrics: Metrics
    judged: Judged


def learn(exemplars: Exemplars, *, seed: int) -> Learned:
    """Return the head of these exemplars: a function of the set and ``seed``, and of nothing else.

    Cold start, fixed order, fixed algorithm: a class that was added later leaves no other trace
    than one that was there from the start. Strength and temperature are chosen by cross-validation,
    anew at every call.
    """
    _use_one_blas_thread()
    features = normalise(exemplars.embeddings)
    targets = exemplars.targets
    balance = balanced_weights(targets, len(exemplars.labels))
    folds = exemplars.folds(seed)
    logits = _out_of_fold_logits(features, exemplars, folds)  # (S, N, C)
    # A row whose class no other fold has is judged, but teaches nothing about certainty.
    group = targets * FOLDS + folds
    weights = balance * (np.bincount(group)[group] < exemplars.counts()[targets])
    temperatures = [_temperature(one, targets, weights) for one in logits]
    losses = [
        float(weights @ _losses(one / temperature, targets))
        for one, temperature in zip(logits, temperatures, strict=True)
    ]
    best = int(np.argmin(losses))
    solution = solve(
        features,
        targets,
        len(exemplars.labels),
        sample_weights=balance[None],
        strengths=np.array([STRENGTHS[best]]),
    )
    probabilities = softmax(logits[best] / temperatures[best])
    return Learned(
        head=Head(
            weights=solution.weights[0].astype(np.float32),
            bias=solution.bias[0].astype(np.float32),
            temperature=temperatures[best],
            strength=STRENGTHS[best],
        ),
        metrics=evaluate(targets, probabilities, exemplars.labels, folds=FOLDS),
        judged=Judged(rows=np.arange(len(targets)), probabilities=probabilities),
    )


@functools.cache
def _use_one_blas_thread() -> None:
    """Limit this process to one BLAS thread, for good: solves may run side by side.

    The result then depends on no core count, and on a busy machine two threads that wait for each
    other took 4.5 s where one took 0.9 s.
    """
    threadpool_limits(limits=1, user_api="blas")


def _out_of_fold_logits(
    features: NDArray[np.float32], exemplars: Exemplars, folds: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return logits (S, N, C) a strength; each row by a head that saw no row of its fold."""
    targets, classes = exemplars.targets, len(exemplars.labels)
    per_fold = np.zeros((FOLDS, len(targets)), dtype=np.float32)
    for fold in range(FOLDS):
        rows = np.flatnonzero(folds != fold)
        per_fold[fold, rows] = balanced_weights(targets[rows], classes)
    solution = solve(
        features,
        targets,
        classes,
        sample_weights=np.tile(per_fold, (len(STRENGTHS), 1)),
        strengths=np.repeat(STRENGTHS, FOLDS),
        tolerance=GRID_TOLERANCE,
        dtype=np.float32,
    )
    logits = np.empty((len(STRENGTHS), len(targets), classes), dtype=np.float32)
    for problem in range(len(STRENGTHS) * FOLDS):
        strength, fold = divmod(problem, FOLDS)
        rows = np.flatnonzero(folds == fold)
        logits[strength, rows] = (
            features[rows] @ solution.weights[problem].T + solution.bias[problem]
        )
    return logits


def _temperature(
    logits: NDArray[np.float32], targets: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    """Return the temperature of least weighted log loss (Guo et al., ICML 2017), 1/20 to 20.

    A class with n images aims at (n + 1) / (n + 2) rather than at certainty (Platt, 1999): without
    that a few images, all told apart, would end in boundless confidence. The loss is convex in the
    inverse temperature, on which these are Newton steps: its derivatives are the logits' mean under
    the model, less the aim, and their variance.
    """
    z = logits.astype(np.float64)
    right = z[np.arange(len(targets)), targets]
    doubt = 1 / (np.bincount(targets)[targets] + 2)
    aim = (1 - doubt) * right + doubt * (z.sum(axis=1) - right) / max(1, z.shape[1] - 1)
    inverse = 1.0
    for _ in range(20):
        p = softmax(inverse * z)
        mean = (p * z).sum(axis=1)
        slope = float(weights @ (mean - aim))
        curvature = float(weights @ (p * np.square(z - mean[:, None])).sum(axis=1))
        step = -slope / max(curvature * inverse, 1e-12)
        inverse = float(np.clip(inverse * np.exp(np.clip(step, -1, 1)), 1 / 20, 20))
    return 1 / inverse


def _losses(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return each row's negative log probability of its target, (N,)."""
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return np.asarray(total - logits[np.arange(len(targets)), targets])
