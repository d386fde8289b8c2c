"""How models and what became of them are shown: as tables, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topwork.v1 import model_service_pb2 as model_pb


def error(problem: Exception) -> None:
    """Print an expected error as one line on standard error."""
    Console(stderr=True).print(
        "[red]error:[/]", escape(str(problem)), highlight=False, soft_wrap=True
    )


def accuracy(metrics: model_pb.Metrics) -> str:
    """Return an accuracy with its interval, such as ``0.931 (0.919..0.941)``."""
    return f"{metrics.accuracy:.3f} ({metrics.accuracy_low:.3f}..{metrics.accuracy_high:.3f})"


def model(console: Console, found: model_pb.Model) -> None:
    """Print a model."""
    revision, limits = found.serving_revision, found.limits
    spec = revision.backbone.preprocess
    facts = Table(show_header=False, box=None)
    for name, value in (
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
    ):
        facts.add_row(name, value)
    console.print(facts, per_label(revision.metrics))


def unknown(metrics: model_pb.Metrics) -> str:
    """Return how well images of no known label are recognised."""
    if not metrics.HasField("unknown"):
        return "cannot be told"
    found = metrics.unknown
    return (
        f"AUROC {found.auroc:.3f}; {found.detection_rate:.0%} recognised at "
        f"{found.false_reject_rate:.0%} false alarms"
    )


def per_label(metrics: model_pb.Metrics) -> Table:
    """Return a table of images, precision and recall of each label."""
    table = Table("label", "images", "precision", "recall")
    for one in metrics.per_label:
        table.add_row(
            escape(one.label), str(one.images), f"{one.precision:.3f}", f"{one.recall:.3f}"
        )
    return table


def added(
    console: Console, label: str, response: model_pb.AddClassResponse, seconds: float
) -> None:
    """Print what AddClass did, before and after; ``seconds`` from the call to the new revision."""
    revision, comparison = response.revision, response.comparison
    table = Table(
        "", "before", "after", title=f"{escape(label)} added: revision {revision.revision}"
    )
    table.add_row("labels", str(len(revision.labels) - 1), str(len(revision.labels)))
    table.add_row(
        "accuracy on the old labels",
        f"{comparison.old_labels_accuracy_before:.3f}",
        f"{comparison.old_labels_accuracy_after:.3f}",
    )
    table.add_row(f"recall of {escape(label)}", "-", f"{comparison.new_label_recall:.3f}")
    table.add_row("accuracy on all labels", "-", accuracy(revision.metrics))
    console.print(table)
    times = response.stage_times
    console.print(
        f"{seconds:.2f} s from the call to revision {revision.revision} serving "
        f"(embedding {response.images_used} images {_seconds(times.embedding):.2f} s, "
        f"solving {_seconds(times.solving):.2f} s)",
        highlight=False,
    )
    for skipped in response.skipped_images:
        console.print(
            f"left out {skipped.display_name}: {skipped.error.message}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def added_json(
    operation: str, response: model_pb.AddClassResponse, seconds: float
) -> dict[str, Any]:
    """Return what AddClass did as JSON data."""
    comparison, times = response.comparison, response.stage_times
    return {
        "operation": operation,
        "revision": response.revision.revision,
        "labels": list(response.revision.labels),
        "metrics": {
            **metrics_json(response.revision.metrics),
            "old_labels_accuracy_before": comparison.old_labels_accuracy_before,
            "old_labels_accuracy_after": comparison.old_labels_accuracy_after,
            "new_label_recall": comparison.new_label_recall,
        },
        "images_used": response.images_used,
        "skipped": [
            {"image": one.display_name, "error": one.error.message}
            for one in response.skipped_images
        ],
        "seconds": {
            "queued": _seconds(times.queued),
            "embedding": _seconds(times.embedding),
            "solving": _seconds(times.solving),
            "publishing": _seconds(times.publishing),
            "total": seconds,
        },
    }


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


def metrics_json(metrics: model_pb.Metrics) -> dict[str, Any]:
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


def _seconds(duration: Any) -> float:
    return float(duration.ToNanoseconds() / 1e9)
