"""Telemetry with a series of every metric, without a server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from topwork.bundle.drift import LEAST_IMAGES, UnknownDistribution
from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS
from topwork.serving.classifier import Classifier
from topwork.serving.encoders.threads import ThreadEncoder
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry

SECONDS = (0.1, 0.2, 0.3, 0.4)
"""Seconds of each stage of a request."""


def engine(repository: Repository) -> tuple[Registry, Classifier, Telemetry]:
    """Return a classifier with one thread and a queue of 16 images, not started."""
    telemetry = Telemetry()
    encoder = ThreadEncoder(provider="cpu", cores=1, limits=DEFAULT_LIMITS)
    registry = Registry(repository, encoder, telemetry=telemetry)
    classifier = Classifier(
        registry, encoder, limits=DEFAULT_LIMITS, cores=1, queue_limit=16, telemetry=telemetry
    )
    return registry, classifier, telemetry


def filled(repository: Repository) -> Telemetry:
    """Return the telemetry of a server in which every metric has a series."""
    _, _, telemetry = engine(repository)
    telemetry.build({"topwork": "1.2.3", "python": "3.11"})
    telemetry.watch("topwork_worker_up", "As the server does.", lambda: 1)
    telemetry.calls.labels("service", "Method", "OK").inc()
    telemetry.call_seconds.labels("service", "Method").observe(1)
    telemetry.stages("image")
    telemetry.rejected.labels("OVERLOADED").inc()
    telemetry.review_images.labels("kept").inc()
    telemetry.agreement.labels("tiny", "0123456789ab", "int8").set(1)
    manifest = repository.manifest("colours", 1)
    reference = UnknownDistribution.of(np.linspace(0, 1, 100))
    manifest = replace(manifest, unknown_distribution=reference)
    telemetry.models.serve(manifest)
    probabilities = np.full((LEAST_IMAGES, len(manifest.labels)), 0.1, dtype=np.float32)
    telemetry.models.answered(
        manifest, probabilities, probabilities[:, 0], errors=1, seconds=SECONDS
    )
    changes = telemetry.changes
    for gauge in (changes.unfinished, changes.oldest, changes.model_bytes):
        gauge.labels("one").set(1)
    changes.finished.labels("add_class", "OK").inc()
    changes.stage_seconds.labels("solving").observe(1)
    return telemetry
