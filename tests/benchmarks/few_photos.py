"""Benchmark of heads learnt from few photos: accuracy and calibration, beside scikit-learn's.

    PYTHONPATH=tests python -m benchmarks.few_photos REPOSITORY MODEL... [--photos 5 10 20 50]
        [--draws 12] [--synthetic 20 100]

Each draw takes some photos of each class of a model, learns a head from them as ``fit`` does, and
judges it on the model's other photos. The embeddings are those of the model's exemplars. The other
classifiers learn from the same embeddings, divided by their lengths, with their settings chosen by
cross-validation. --synthetic makes more classes: their means are random, and their variation is
that of the first model's photos.

Prints a table in Markdown. ECE is the expected calibration error (15 bins), chance that of a head
whose confidences are exactly right, on as many photos: a bin of few photos always differs a little.
Gap is the mean confidence less the accuracy, behind the difference in accuracy to the best other
classifier, in points.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import SVC

from topwork.bundle.exemplars import Exemplars, make
from topwork.bundle.store import Repository
from topwork.learning.learn import learn
from topwork.runtime.cores import available_cores

BINS = 15


class ShrunkenLDA(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """scikit-learn's LinearDiscriminantAnalysis with a shrinkage, without D x D matrices."""

    def __init__(self, shrinkage: float = 0.1) -> None:
        """Set the share of the covariance that is the mean variance times the identity."""
        self.shrinkage = shrinkage

    def fit(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> ShrunkenLDA:
        """Learn from features (N, D) and classes (N,)."""
        self.classes_, targets, counts = np.unique(y, return_inverse=True, return_counts=True)
        means = np.array([x[targets == label].mean(axis=0) for label in range(len(counts))])
        within = (x - means[targets]).astype(np.float64)
        level = self.shrinkage * np.square(within).sum() / x.size
        within *= np.sqrt((1 - self.shrinkage) / len(x))
        system = within @ within.T + level * np.eye(len(x))
        self.coef_ = (means - (within.T @ np.linalg.solve(system, within @ means.T)).T) / level
        self.intercept_ = np.log(counts / len(x)) - (self.coef_ * means).sum(axis=1) / 2
        return self

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the classes (N,)."""
        scores = x @ self.coef_.T + self.intercept_
        return np.asarray(self.classes_[scores.argmax(axis=1)])


OTHERS: Mapping[str, tuple[Any, Mapping[str, Sequence[float]]]] = {
    "logistic regression": (LogisticRegression(max_iter=2000), {"C": (1, 10, 100, 1000)}),
    "LDA": (ShrunkenLDA(), {"shrinkage": (0.1, 0.4, 0.8)}),
    "nearest mean": (NearestCentroid(), {}),
    "nearest neighbours": (KNeighborsClassifier(), {"n_neighbors": (1, 3, 5)}),
    "RBF SVM": (SVC(), {"C": (1, 10), "gamma": (0.5, 1, 2)}),
}
SEPARATION = 0.6
"""Raising it moves the means of synthetic classes apart, in standard deviations of the photos."""
SIMULATIONS = 100
"""Simulations of predictions of a calibrated head."""
JUDGED = 30
"""Photos of a synthetic class to judge heads on."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--photos", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--synthetic", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of solvers that stop early
    repository = Repository(arguments.repository)
    sets = {
        model: repository.exemplars(repository.manifest(model, repository.serving(model)).exemplars)
        for model in arguments.models
    }
    columns = "photos of | classes | a class | accuracy | ECE | chance | gap | behind"
    print(f"| {columns} | the best other |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, exemplars in sets.items():
        for photos in arguments.photos:
            draws = [draw(exemplars, photos, seed) for seed in range(arguments.draws)]
            print(row(name, photos, draws), flush=True)
    first = sets[arguments.models[0]]
    for classes in arguments.synthetic:
        for photos in arguments.photos:
            draws = [
                draw(synthesise(first, classes, photos + JUDGED, seed), photos, seed)
                for seed in range(arguments.draws)
            ]
            print(row("synthetic", photos, draws), flush=True)


def draw(exemplars: Exemplars, photos: int, seed: int) -> tuple[Exemplars, Exemplars]:
    """Return ``photos`` exemplars of each class, and the others."""
    shuffled = np.random.default_rng(seed).permutation(len(exemplars))
    chosen = np.zeros(len(exemplars), dtype=bool)
    for label in range(len(exemplars.labels)):
        chosen[shuffled[exemplars.targets[shuffled] == label][:photos]] = True
    return exemplars.where(chosen), exemplars.where(~chosen)


def row(name: str, photos: int, draws: Sequence[tuple[Exemplars, Exemplars]]) -> str:
    """Return a row of the table: means over the draws."""
    accuracies: dict[str, list[float]] = {other: [] for other in ("topwork", *OTHERS)}
    errors, chances, gaps = [], [], []
    for train, test in draws:
        learned = learn(train, seed=0, threads=available_cores())
        probabilities = learned.head.probabilities(test.embeddings)
        right = probabilities.argmax(axis=1) == test.targets
        confidence = probabilities.max(axis=1)
        accuracies["topwork"].append(float(right.mean()))
        errors.append(calibration_error(confidence, right))
        chances.append(chance_error(confidence))
        gaps.append(float(confidence.mean() - right.mean()))
        for other, found in others(train, test).items():
            accuracies[other].append(found)
    means = {other: float(np.mean(values)) for other, values in accuracies.items()}
    best = max(OTHERS, key=lambda other: means[other])
    behind = 100 * (np.array(accuracies[best]) - accuracies["topwork"])
    error = 1.96 * behind.std(ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else np.nan
    classes = len(draws[0][0].labels)
    return (
        f"| {name} | {classes} | {photos} | {means['topwork']:.3f} | {np.mean(errors):.3f} | "
        f"{np.mean(chances):.3f} | {np.mean(gaps):+.3f} | "
        f"{behind.mean():+.1f} (+-{error:.1f}) | {best} |"
    )


def others(train: Exemplars, test: Exemplars) -> dict[str, float]:
    """Return the accuracy of each other classifier."""
    features, judged = (unit(exemplars.embeddings) for exemplars in (train, test))
    folds = StratifiedKFold(min(5, int(train.counts().min())), shuffle=True, random_state=0)
    found = {}
    for name, (classifier, settings) in OTHERS.items():
        search = GridSearchCV(classifier, dict(settings), cv=folds)
        found[name] = float(search.fit(features, train.targets).score(judged, test.targets))
    return found


def unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the embeddings (N, D) divided by their lengths."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def calibration_error(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of N predictions, both (N,)."""
    edges = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(edges, minlength=BINS)
    confident = np.bincount(edges, confidence, BINS)
    return float(np.abs(confident - np.bincount(edges, right, BINS)).sum() / counts.sum())


def chance_error(confidence: NDArray[np.float32]) -> float:
    """Return the mean calibration error of N predictions that are right with their confidence."""
    draws = np.random.default_rng(0).random((SIMULATIONS, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, right) for right in draws]))


def synthesise(exemplars: Exemplars, classes: int, photos: int, seed: int) -> Exemplars:
    """Return ``photos`` exemplars of each of ``classes``, with the exemplars' own variation."""
    rng = np.random.default_rng(seed)
    embeddings, targets = exemplars.embeddings.astype(np.float64), exemplars.targets
    means = np.stack([embeddings[targets == label].mean(axis=0) for label in np.unique(targets)])
    variation = embeddings - means[targets]
    _, lengths, axes = np.linalg.svd(variation, full_matrices=False)
    spread = (lengths / np.sqrt(len(variation)) * axes.T)[:, :60].T
    new_means = means.mean(axis=0) + SEPARATION * rng.standard_normal((classes, 60)) @ spread
    chosen = rng.integers(0, len(variation), (classes, photos))
    rows = np.maximum(new_means[:, None] + variation[chosen], 0).reshape(classes * photos, -1)
    digests, fingerprints = (
        np.frombuffer(rng.bytes(32 * len(rows)), dtype=np.uint8).reshape(-1, 32) for _ in range(2)
    )
    labels = [f"class {label:04d}" for label in np.repeat(np.arange(classes), photos)]
    return make(rows.astype(np.float32), digests, fingerprints, labels)


if __name__ == "__main__":
    main()
