"""Conversion of models, revisions and comparisons."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta

from support import tiny
from support.reports import COMPARISON

from topwork.bundle.serving import Move, ServingState
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.rpc.convert.revisions import (
    PublishedRevision,
    StoredModel,
    to_comparison,
    to_model,
    to_revision,
)
from topwork.serving.backbones import LoadedBackbone


def test_model_has_every_value_of_the_manifest(published: PublishedRevision) -> None:
    """A model's message has the values of its revision, from labels to the confusion matrix."""
    manifest, metrics = published.manifest, published.metrics
    assert metrics is not None
    moves = tuple(
        Move(
            revision=number,
            previous=number - 1,
            why="add_class" if number % 2 else "rollback",
            operation=f"operation-{number}" if number % 2 else "",
            time=datetime(2026, 3, 4, tzinfo=UTC) + timedelta(seconds=number),
        )
        for number in range(1, 121)
    )
    stored = StoredModel(
        ServingState(revision=1, pinned=(1, 7), moves=moves), published, list(range(1, 121))
    )
    message = to_model(stored, DEFAULT_LIMITS)
    revision = message.serving_revision
    assert (message.name, list(message.revisions)) == ("models/colours", list(range(1, 121)))
    assert list(message.pinned_revisions) == [1, 7]
    assert [move.revision for move in message.moves] == list(range(120, 20, -1))
    latest, second = message.moves[:2]
    assert (latest.revision, latest.previous_revision) == (120, 119)
    assert (latest.cause, latest.operation) == ("rollback", "")
    assert latest.time.ToDatetime(UTC) == moves[-1].time
    assert (second.cause, second.operation) == ("add_class", "operations/operation-119")
    assert revision.name == "models/colours/revisions/1"
    assert (revision.revision, revision.parent_revision) == (1, 0)
    assert tuple(revision.labels) == manifest.labels
    assert revision.backbone.digest == manifest.backbone
    assert (revision.backbone.name, revision.backbone.width) == ("tiny", tiny.WIDTH)
    spec = revision.backbone.preprocess
    assert (spec.resize, spec.crop, spec.interpolation) == (16, 16, "bicubic")
    created = revision.create_time.ToDatetime(UTC)
    assert abs(created - manifest.created) < timedelta(microseconds=2)
    assert revision.metrics.accuracy == metrics.accuracy
    assert revision.metrics.expected_calibration_error == metrics.ece
    assert metrics.unknown is not None
    assert revision.metrics.unknown.auroc == metrics.unknown.auroc
    assert revision.backbone.precision == "fp32"
    chosen = manifest.chosen
    assert (revision.head.kind, revision.head.normalisation) == ("logistic", "sqrt_l2")
    assert (revision.head.strength, revision.head.temperature) == (
        chosen.strength,
        chosen.temperature,
    )
    assert revision.head.unknown_threshold == chosen.unknown_threshold
    assert [(label.label, label.images) for label in revision.metrics.per_label] == [
        (label, 20) for label in manifest.labels
    ]
    size = len(manifest.labels)
    assert [
        list(revision.metrics.confusion[row * size : (row + 1) * size]) for row in range(size)
    ] == [list(row) for row in metrics.confusion]


def test_revision_with_damaged_metrics_has_labels(published: PublishedRevision) -> None:
    """Unreadable fields are unset; every value of the manifest is there."""
    revision = to_revision(PublishedRevision(published.manifest, None, None))
    assert tuple(revision.labels) == published.manifest.labels
    assert not revision.HasField("metrics")
    assert not revision.HasField("backbone")


def test_model_has_the_loaded_backbone(published: PublishedRevision) -> None:
    """What runs and its agreement are in the message; an unknown agreement is unset."""
    assert published.backbone is not None
    twin = replace(published.backbone, digest="a" * 64)
    stored = StoredModel(ServingState(revision=1), published, [1], LoadedBackbone(twin, 0.5))
    message = to_model(stored, DEFAULT_LIMITS)
    assert message.loaded_backbone.digest == "a" * 64
    assert message.loaded_backbone.precision == "fp32"
    assert message.loaded_backbone.agreement == 0.5
    assert message.serving_revision.backbone.digest == published.manifest.backbone
    old = replace(stored, loaded=LoadedBackbone(twin, None))
    assert not to_model(old, DEFAULT_LIMITS).loaded_backbone.HasField("agreement")
    unknown = replace(stored, loaded=None)
    assert not to_model(unknown, DEFAULT_LIMITS).HasField("loaded_backbone")


def test_model_has_every_limit(published: PublishedRevision) -> None:
    """The limits' message has each limit under its own name."""
    limits = ServerLimits(**{field.name: 1000 + n for n, field in enumerate(fields(ServerLimits))})
    stored = StoredModel(ServingState(revision=1), published, [1])
    message = to_model(stored, limits).limits
    told = {field.name: value for field, value in message.ListFields()}
    assert told == asdict(limits)


def test_comparison_has_every_number() -> None:
    """Each number of a comparison is in its field; no comparison is no message."""
    message = to_comparison(COMPARISON)
    assert message is not None
    assert (message.images, message.accuracy_before, message.accuracy_after) == (60, 0.95, 0.9)
    assert (message.drop, message.drop_low, message.drop_high) == (0.05, 0.02, 0.08)
    assert message.calibration_error_before == COMPARISON.ece_before
    assert message.calibration_error_after == COMPARISON.ece_after
    assert [
        (label.label, label.images, label.recall_before, label.recall_after)
        for label in message.labels
    ] == [("daisy", 30, 0.9, 0.9), ("rose", 30, 1.0, 0.9)]
    taught = message.taught
    assert (taught.label, taught.images, taught.recall) == ("tulip", 30, 0.4)
    assert (taught.recall_low, taught.recall_high) == (0.25, 0.58)
    (confusion,) = message.confusions
    assert (confusion.label, confusion.called) == ("tulip", "rose")
    assert (confusion.images, confusion.share) == (18, 0.6)
    assert to_comparison(None) is None
