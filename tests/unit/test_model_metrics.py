"""Metrics by model: counts, bounds on the number of series, drift of the serving revision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.metrics import SECONDS

from topwork.arrays import Float32Array
from topwork.bundle.drift import LEAST_IMAGES, UnknownDistribution
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.model_metrics import OTHER, STAGES
from topwork.telemetry import Telemetry

LABELS = ("amber", "blue", "cyan", "green")
REFERENCE = UnknownDistribution.of(np.linspace(0, 1, 100))


@pytest.fixture
def manifest(colours: Repository) -> Manifest:
    """Return a manifest with four labels, a threshold of 0.5 and a reference of drift."""
    manifest = colours.manifest("colours", 1)
    chosen = replace(manifest.chosen, unknown_threshold=0.5)
    return replace(manifest, labels=LABELS, chosen=chosen, unknown_distribution=REFERENCE)


def rows(*classes: int, confidence: float = 0.97) -> Float32Array:
    """Return probabilities (N, 4) with the highest at ``classes``."""
    probabilities = np.full((len(classes), len(LABELS)), 0.01, dtype=np.float32)
    probabilities[np.arange(len(classes)), classes] = confidence
    return probabilities


def answer(
    telemetry: Telemetry, manifest: Manifest, *classes: int, unknown: float = 0.1, errors: int = 0
) -> None:
    """Count a request with images of ``classes``."""
    found = rows(*classes) if classes else None
    unknowns = None if found is None else np.full(len(found), unknown, dtype=np.float32)
    telemetry.models.answered(manifest, found, unknowns, errors=errors, seconds=SECONDS)


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    """Return the value of a series, or None if it does not exist."""
    return telemetry._registry.get_sample_value(name, labels)


def labels_of(telemetry: Telemetry, name: str, label: str) -> list[str]:
    """Return the values of a label of all series of a metric."""
    return [
        sample.labels[label]
        for family in telemetry._registry.collect()
        for sample in family.samples
        if sample.name == name
    ]


def test_answers_are_counted(manifest: Manifest) -> None:
    """Predicted labels, confidence, unknowns, errors and seconds are those of the answers."""
    telemetry = Telemetry()
    telemetry.models.serve(manifest)
    answer(telemetry, manifest, 0, 0, 1)
    answer(telemetry, manifest, 3, unknown=0.5)
    answer(telemetry, manifest, errors=2)
    model = manifest.model
    predicted = {
        label: value(telemetry, "topwork_predicted_images_total", model=model, label=label)
        for label in LABELS
    }
    assert predicted == {"amber": 2, "blue": 1, "cyan": None, "green": 1}
    assert value(telemetry, "topwork_unknown_images_total", model=model) == 1
    assert value(telemetry, "topwork_images_total", model=model, result="ok") == 4
    assert value(telemetry, "topwork_images_total", model=model, result="error") == 2
    for bound, count in (("0.95", 0), ("0.99", 4), ("+Inf", 4)):
        assert value(telemetry, "topwork_confidence_bucket", model=model, le=bound) == count
    assert value(telemetry, "topwork_confidence_sum", model=model) == pytest.approx(4 * 0.97)
    for stage, seconds in zip(STAGES, SECONDS, strict=True):
        total = value(telemetry, "topwork_model_stage_seconds_total", model=model, stage=stage)
        assert total == pytest.approx(3 * seconds)


def test_models_and_labels_beyond_the_limits_are_counted_together(manifest: Manifest) -> None:
    """The first models and labels have series; all others are in those of OTHER."""
    telemetry = Telemetry(models=2, model_labels=2)
    for name in "abcd":
        named = replace(manifest, model=name)
        telemetry.models.serve(named)
        answer(telemetry, named, 3, 1, 1, 0, 2)
    assert labels_of(telemetry, "topwork_unknown_images_total", "model") == ["a", "b", OTHER]
    for label, count in (("green", 1), ("blue", 2), (OTHER, 2)):
        found = value(telemetry, "topwork_predicted_images_total", model="a", label=label)
        assert found == count
    assert value(telemetry, "topwork_predicted_images_total", model=OTHER, label=OTHER) == 10
    assert value(telemetry, "topwork_images_total", model=OTHER, result="ok") == 10


def test_series_of_a_deleted_model_are_removed(manifest: Manifest) -> None:
    """Nothing names a deleted model, and another model gets its place."""
    telemetry = Telemetry(models=1)
    other = replace(manifest, model="other")
    for served in (manifest, other):
        telemetry.models.serve(served)
    answer(telemetry, manifest, 1)
    telemetry.models.forget(manifest.model)
    answer(telemetry, other, 1)
    assert labels_of(telemetry, "topwork_unknown_images_total", "model") == ["other"]


def test_request_in_flight_of_a_deleted_model_makes_no_series(manifest: Manifest) -> None:
    """It counts as OTHER."""
    telemetry = Telemetry()
    answer(telemetry, manifest, 1)
    assert labels_of(telemetry, "topwork_unknown_images_total", "model") == [OTHER]


def test_labels_that_a_new_revision_lacks_are_removed(manifest: Manifest) -> None:
    """The counts of the other labels continue."""
    telemetry = Telemetry()
    telemetry.models.serve(manifest)
    answer(telemetry, manifest, 0, 1)
    telemetry.models.serve(replace(manifest, labels=LABELS[1:]))
    assert labels_of(telemetry, "topwork_predicted_images_total", "label") == ["blue"]


def test_drift_is_that_of_the_serving_revision(manifest: Manifest) -> None:
    """Answers of another revision do not count; a new revision begins a new window."""
    telemetry = Telemetry()
    telemetry.models.serve(manifest)
    many = [0] * LEAST_IMAGES
    answer(telemetry, replace(manifest, revision=9), *many, unknown=0.99)
    assert value(telemetry, "topwork_model_drift", model=manifest.model) is None
    answer(telemetry, manifest, *many, unknown=0.99)
    drift = value(telemetry, "topwork_model_drift", model=manifest.model)
    threshold = value(telemetry, "topwork_model_drift_threshold", model=manifest.model)
    assert drift == pytest.approx(0.9)
    assert threshold is not None
    assert threshold < 0.5
    telemetry.models.serve(replace(manifest, revision=2))
    assert value(telemetry, "topwork_model_drift", model=manifest.model) is None


def test_revision_of_an_earlier_release_has_no_drift(manifest: Manifest) -> None:
    """Its manifest has no distribution; everything else is counted."""
    telemetry = Telemetry()
    old = replace(manifest, unknown_distribution=None)
    telemetry.models.serve(old)
    answer(telemetry, old, *[0] * LEAST_IMAGES, unknown=0.99)
    assert value(telemetry, "topwork_unknown_images_total", model=old.model) == LEAST_IMAGES
    assert value(telemetry, "topwork_model_drift", model=old.model) is None


def test_rejections_of_the_gate_are_counted_by_model(manifest: Manifest) -> None:
    """A model without rejections has the value 0, so that the first one is an increase."""
    telemetry = Telemetry()
    telemetry.models.serve(manifest)
    answer(telemetry, manifest, 0)
    assert value(telemetry, "topwork_gate_rejections_total", model=manifest.model) == 0
    telemetry.models.gate_rejected(manifest.model)
    assert value(telemetry, "topwork_gate_rejections_total", model=manifest.model) == 1
