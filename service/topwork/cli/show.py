"""Tables and JSON of models and revisions."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from topwork import tables
from topwork.terminal import Console
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb


def accuracy(metrics: revision_pb.Metrics) -> str:
    """Return an accuracy with its interval, such as ``0.931 (0.919..0.941)``, or ``-``."""
    if not metrics.images:
        return "-"
    return f"{metrics.accuracy:.3f} ({metrics.accuracy_low:.3f}..{metrics.accuracy_high:.3f})"


def moment(time: str) -> str:
    """Return a time such as ``2026-11-27T18:47:05Z`` so that a table can wrap it."""
    return time.replace("T", " ")


def model(console: Console, found: model_pb.Model) -> None:
    """Print a model."""
    if found.HasField("draft"):
        _draft(console, found)
        return
    revision, limits = found.serving_revision, found.limits
    rows = (
        ("model", found.name),
        ("serving revision", f"{revision.revision} of {list(found.revisions)}"),
        ("published", revision.create_time.ToDatetime().isoformat(timespec="seconds") + "Z"),
        ("backbone", f"{revision.backbone.name} ({revision.backbone.digest[:12]})"),
        ("precision", precision(found)),
        ("embedding", f"{revision.backbone.width} numbers"),
        _input(revision.backbone),
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
            f"{limits.max_images_per_request} inputs per request"
            f"{_of_input(limits, found.input_kind)}",
        ),
    )
    facts = tables.table(("", ""), rows)
    facts.show_header = False
    console.print(facts, "", per_label(revision.metrics))


def _of_input(limits: model_pb.Limits, kind: str) -> str:
    """Return the limits of one input, as the end of a sentence; empty for embeddings."""
    return {
        "image": f", {limits.max_image_bytes // 2**20} MiB and "
        f"{limits.max_image_pixels // 10**6} megapixels per image",
        "text": f", {limits.max_text_bytes // 2**10} KiB per text",
        "audio": f", {limits.max_audio_bytes // 2**20} MiB per recording",
    }.get(kind, "")


def _input(backbone: revision_pb.Backbone) -> tuple[str, str]:
    """Return a name and a sentence about the inputs that a backbone takes."""
    spec, audio = backbone.preprocess, backbone.audio
    if backbone.HasField("embedding"):
        return "input", f"embeddings of the space {backbone.embedding.space}"
    if backbone.HasField("text"):
        return "input", f"texts of up to {backbone.text.max_tokens} tokens"
    if backbone.HasField("audio"):
        window = audio.window_samples / audio.rate_hz
        return "input", (
            f"audio of up to {audio.max_seconds} s, in windows of {window:g} s at "
            f"{audio.rate_hz} Hz"
        )
    return "preprocessing", (
        f"short side to {spec.resize}, central {spec.crop} x {spec.crop}, {spec.interpolation}"
    )


def _draft(console: Console, found: model_pb.Model) -> None:
    draft = found.draft
    rows = (
        ("model", found.name),
        ("serving revision", f"none; {draft.missing_labels} more labels are needed"),
        ("labels", ", ".join(draft.labels) or "none"),
        ("images", str(draft.images)),
        ("backbone", f"{draft.backbone.name} ({draft.backbone.digest[:12]})"),
        ("head", f"{draft.head} on {draft.normalisation}, seed {draft.seed}"),
    )
    facts = tables.table(("", ""), rows)
    facts.show_header = False
    console.print(facts)


def precision(found: model_pb.Model) -> str:
    """Return the precision of the backbone, and its agreement on the server."""
    stored, loaded = found.serving_revision.backbone, found.loaded_backbone
    agreement = ""
    if loaded.HasField("agreement"):
        agreement = f", agreement {loaded.agreement:.4f} on this server"
    if loaded.digest and loaded.digest != stored.digest:
        return f"{stored.precision}{agreement}; its {loaded.precision} twin runs instead"
    return f"{stored.precision}{agreement}"


def unknown(metrics: revision_pb.Metrics) -> str:
    """Return the quality of the detection of unknown images."""
    if not metrics.HasField("unknown"):
        return "not detected by this head"
    found = metrics.unknown
    return (
        f"AUROC {found.auroc:.3f}; {found.detection_rate:.0%} recognised at "
        f"{found.false_reject_rate:.0%} false alarms"
    )


def per_label(metrics: revision_pb.Metrics) -> Table:
    """Return a table of images, precision and recall of each label."""
    rows = [
        (row.label, str(row.images), f"{row.precision:.3f}", f"{row.recall:.3f}")
        for row in metrics.per_label
    ]
    return tables.table(("label", "images", "precision", "recall"), rows, copied=["label"])


def model_json(found: model_pb.Model) -> dict[str, Any]:
    """Return a model as JSON data."""
    revision, loaded = found.serving_revision, found.loaded_backbone
    spec, audio = revision.backbone.preprocess, revision.backbone.audio
    return {
        "model": found.name.removeprefix("models/"),
        "input_kind": found.input_kind,
        "revision": revision.revision,
        "revisions": list(found.revisions),
        "labels": list(revision.labels),
        "backbone": {
            "name": revision.backbone.name,
            "digest": revision.backbone.digest,
            "width": revision.backbone.width,
            "precision": revision.backbone.precision,
            **(
                {"space": revision.backbone.embedding.space}
                if revision.backbone.HasField("embedding")
                else {}
            ),
            **(
                {"rate": audio.rate_hz, "max_seconds": audio.max_seconds}
                if revision.backbone.HasField("audio")
                else {}
            ),
        },
        "loaded_backbone": None
        if not loaded.digest
        else {
            "digest": loaded.digest,
            "precision": loaded.precision,
            "agreement": loaded.agreement if loaded.HasField("agreement") else None,
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
        "draft": None
        if not found.HasField("draft")
        else {
            "labels": list(found.draft.labels),
            "images": found.draft.images,
            "missing_labels": found.draft.missing_labels,
            "backbone": found.draft.backbone.name,
        },
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
            row.label: {"images": row.images, "precision": row.precision, "recall": row.recall}
            for row in metrics.per_label
        },
    }
