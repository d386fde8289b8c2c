"""Tables and JSON of models and revisions."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from topwork import tables
from topwork.terminal import Console
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb


def accuracy(metrics: revision_pb.Metrics) -> str:
    """Return an accuracy with its interval, such as ``0.931 (0.919..0.941)``; - without images."""
    if not metrics.images:
        return "-"
    return f"{metrics.accuracy:.3f} ({metrics.accuracy_low:.3f}..{metrics.accuracy_high:.3f})"


def moment(time: str) -> str:
    """Return a time such as ``2026-11-27T18:47:05Z`` so that it can go on in a second line."""
    return time.replace("T", " ")


def model(console: Console, found: model_pb.Model) -> None:
    """Print a model."""
    revision, limits = found.serving_revision, found.limits
    spec = revision.backbone.preprocess
    rows = (
        ("model", found.name),
        ("serving revision", f"{revision.revision} of {list(found.revisions)}"),
        ("published", revision.create_time.ToDatetime().isoformat(timespec="seconds") + "Z"),
        ("backbone", f"{revision.backbone.name} ({revision.backbone.digest[:12]})"),
        ("embedding", f"{revision.backbone.width} numbers"),
        (
            "preprocessing",
            f"short side to {spec.resize}, central {spec.crop} x {spec.crop}, {spec.interpolation}",
        ),
        (
            "head",
            f"{revision.head.kind} on {revision.head.normalisation}, strength "
            f"{revision.head.strength:g}, temperature {revision.head.temperature:.3f}",
        ),
        ("accuracy", f"{accuracy(revision.metrics)}, {revision.metrics.folds}-fold"),
        ("calibration error", f"{revision.metrics.expected_calibration_error:.3f}"),
        ("unknown images", unknown(revision.metrics)),
        (
            "limits",
            f"a request {limits.max_images_per_request} images, an image "
            f"{limits.max_image_bytes // 2**20} MiB, {limits.max_image_pixels // 10**6} megapixels",
        ),
    )
    facts = tables.table(("", ""), rows)
    facts.show_header = False
    console.print(facts, "", per_label(revision.metrics))


def unknown(metrics: revision_pb.Metrics) -> str:
    """Return how well images of no known label are recognised."""
    if not metrics.HasField("unknown"):
        return "cannot be told"
    found = metrics.unknown
    return (
        f"AUROC {found.auroc:.3f}; {found.detection_rate:.0%} recognised at "
        f"{found.false_reject_rate:.0%} false alarms"
    )


def per_label(metrics: revision_pb.Metrics) -> Table:
    """Return a table of images, precision and recall of each label."""
    rows = [
        (one.label, str(one.images), f"{one.precision:.3f}", f"{one.recall:.3f}")
        for one in metrics.per_label
    ]
    return tables.table(("label", "images", "precision", "recall"), rows, copied=["label"])


def model_json(found: model_pb.Model) -> dict[str, Any]:
    """Return a model as JSON data."""
    revision = found.serving_revision
    spec = revision.backbone.preprocess
    return {
        "model": found.name.removeprefix("models/"),
        "revision": revision.revision,
        "revisions": list(found.revisions),
        "labels": list(revision.labels),
        "backbone": {
            "name": revision.backbone.name,
            "digest": revision.backbone.digest,
            "width": revision.backbone.width,
            "precision": revision.backbone.precision,
        },
        "head": {
            "kind": revision.head.kind,
            "normalisation": revision.head.normalisation,
            "strength": revision.head.strength,
            "temperature": revision.head.temperature,
        },
        "preprocess": {
            "resize": spec.resize,
            "crop": spec.crop,
            "interpolation": spec.interpolation,
        },
        "metrics": metrics_json(revision.metrics),
        "limits": {field.name: value for field, value in found.limits.ListFields()},
    }


def metrics_json(metrics: revision_pb.Metrics) -> dict[str, Any]:
    """Return metrics as JSON data."""
    return {
        "images": metrics.images,
        "folds": metrics.folds,
        "accuracy": metrics.accuracy,
        "accuracy_low": metrics.accuracy_low,
        "accuracy_high": metrics.accuracy_high,
        "log_loss": metrics.log_loss,
        "ece": metrics.expected_calibration_error,
        "unknown": None
        if not metrics.HasField("unknown")
        else {field.name: value for field, value in metrics.unknown.ListFields()},
        "per_class": {
            one.label: {"images": one.images, "precision": one.precision, "recall": one.recall}
            for one in metrics.per_label
        },
    }
