"""Prometheus metrics of the answers by model: labels, confidence, unknowns, stages, drift."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from topwork.arrays import Float32Array
from topwork.bundle.drift import UnknownWindow
from topwork.bundle.manifest import Manifest

OTHER = "(other)"
"""Stands for models and labels without series of their own; no model can have this name."""

CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Upper bounds of the histogram's buckets."""

STAGES = ("queue", "decode", "backbone", "head")

Seconds: TypeAlias = tuple[float, float, float, float]
"""Sums of the images' seconds in each of STAGES."""


class ModelMetrics:
    """Counts of the answers since the start, in at most ``models`` times ``labels`` series.

    The first ``models`` models that answer have series, and of each the first ``labels`` labels
    that it predicts; all others are counted together as OTHER. Series of a deleted model, and of
    labels that the serving revision lacks, are removed. Only the serving revision's answers count
    for drift. Thread-safe: a collector of prometheus_client.
    """

    def __init__(self, *, models: int, labels: int) -> None:
        self._most_models = models
        self._most_labels = labels
        self._serving: dict[str, Manifest] = {}
        self._counts: dict[str, _Counts] = {}
        self._lock = threading.Lock()

    def serve(self, manifest: Manifest) -> None:
        """Begin a window of drift, as a revision begins to serve."""
        with self._lock:
            self._serving[manifest.model] = manifest
            if manifest.model in self._counts:
                self._counts[manifest.model].serve(manifest)

    def forget(self, model: str) -> None:
        """Remove the series of a deleted model."""
        with self._lock:
            self._serving.pop(model, None)
            self._counts.pop(model, None)

    def answered(
        self,
        manifest: Manifest,
        probabilities: Float32Array | None,
        unknown: Float32Array | None,
        *,
        errors: int,
        seconds: Seconds,
    ) -> None:
        """Count the answers of a request with probabilities (N, C) and unknown ones (N,)."""
        with self._lock:
            counts = self._of(manifest.model)
            counts.errors += errors
            counts.seconds = [sum(pair) for pair in zip(counts.seconds, seconds, strict=True)]
            if probabilities is not None:
                counts.count(manifest.labels, probabilities)
            if unknown is not None:
                counts.count_unknown(manifest, unknown)

    def gate_rejected(self, model: str) -> None:
        """Count a revision that failed its gate."""
        with self._lock:
            self._of(model).rejected += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        with self._lock:
            counts = {model: found.copy() for model, found in self._counts.items()}
        images = CounterMetricFamily(
            "topwork_images", "Images answered.", labels=("model", "result")
        )
        predicted = CounterMetricFamily(
            "topwork_predicted_images",
            "Images by their most probable label, with those that are unknown.",
            labels=("model", "label"),
        )
        unknown = CounterMetricFamily(
            "topwork_unknown_images",
            "Images whose unknown probability reached the threshold.",
            labels=("model",),
        )
        confidence = HistogramMetricFamily(
            "topwork_confidence", "Highest probability of an image.", labels=("model",)
        )
        stages = CounterMetricFamily(
            "topwork_model_stage_seconds",
            "Sum of the times of a model's images in a stage.",
            labels=("model", "stage"),
        )
        rejected = CounterMetricFamily(
            "topwork_gate_rejections", "Revisions that failed their gate.", labels=("model",)
        )
        drift = GaugeMetricFamily(
            "topwork_model_drift",
            "Distance of the last images' unknown probabilities from the out-of-fold ones, 0 to 1.",
            labels=("model",),
        )
        threshold = GaugeMetricFamily(
            "topwork_model_drift_threshold",
            "Drift that is neither chance nor small.",
            labels=("model",),
        )
        for model, found in counts.items():
            for result, count in (("ok", sum(found.confidence)), ("error", found.errors)):
                if count:
                    images.add_metric((model, result), count)
            for label, count in found.predicted.items():
                predicted.add_metric((model, label), count)
            unknown.add_metric((model,), found.unknown)
            total, buckets = 0, []
            for bound, count in zip((*CONFIDENCES, "+Inf"), found.confidence, strict=True):
                buckets.append((str(bound), float(total := total + count)))
            confidence.add_metric((model,), buckets, found.confidence_sum)
            for stage, seconds in zip(STAGES, found.seconds, strict=True):
                stages.add_metric((model, stage), seconds)
            rejected.add_metric((model,), found.rejected)
            if found.drift is not None:
                drift.add_metric((model,), found.drift[0])
                threshold.add_metric((model,), found.drift[1])
        yield from (images, predicted, unknown, confidence, stages, rejected, drift, threshold)

    def _of(self, model: str) -> _Counts:
        counts = self._counts.get(model)
        if counts is None:
            serving = self._serving.get(model)
            named = len(self._counts.keys() - {OTHER})
            if serving is None or named >= self._most_models:
                return self._counts.setdefault(OTHER, _Counts(labels=0))
            counts = self._counts[model] = _Counts(labels=self._most_labels)
            counts.serve(serving)
        return counts


class _Counts:
    """Counts of one model, or of OTHER."""

    def __init__(self, *, labels: int) -> None:
        self._most_labels = labels
        self._manifest: Manifest | None = None
        self._window: UnknownWindow | None = None
        self.predicted: Counter[str] = Counter()
        self.confidence = [0] * (len(CONFIDENCES) + 1)
        self.confidence_sum = 0.0
        self.unknown = 0
        self.errors = 0
        self.rejected = 0
        self.seconds = [0.0] * len(STAGES)
        self.drift: tuple[float, float] | None = None
        """Drift and its threshold; only in a copy."""

    def copy(self) -> _Counts:
        """Return a copy for a scrape."""
        copied = _Counts(labels=0)
        copied.predicted = self.predicted.copy()
        copied.confidence, copied.seconds = [*self.confidence], [*self.seconds]
        copied.confidence_sum = self.confidence_sum
        copied.unknown, copied.errors = self.unknown, self.errors
        copied.rejected = self.rejected
        copied.drift = None if self._window is None else self._window.drift()
        return copied

    def serve(self, manifest: Manifest) -> None:
        """Drop the labels that ``manifest`` lacks, and begin its window."""
        known = {*manifest.labels, OTHER}
        self.predicted = Counter({k: count for k, count in self.predicted.items() if k in known})
        reference = manifest.unknown_distribution
        self._manifest = manifest
        self._window = None if reference is None else UnknownWindow(reference)

    def count(self, labels: tuple[str, ...], probabilities: Float32Array) -> None:
        """Count predicted labels and confidences."""
        predicted = self.predicted
        for index in probabilities.argmax(axis=1).tolist():
            label = labels[index]
            if (
                label not in predicted
                and len(predicted) - (OTHER in predicted) >= self._most_labels
            ):
                label = OTHER
            predicted[label] += 1
        for confidence in probabilities.max(axis=1).tolist():
            self.confidence[bisect_left(CONFIDENCES, confidence)] += 1
            self.confidence_sum += confidence

    def count_unknown(self, manifest: Manifest, unknown: Float32Array) -> None:
        """Count unknown images, and those of the serving revision in the window."""
        values, threshold = unknown.tolist(), manifest.chosen.unknown_threshold
        if threshold is not None:
            self.unknown += sum(value >= threshold for value in values)
        if self._window is not None and manifest is self._manifest:
            for value in values:
                self._window.add(value)
