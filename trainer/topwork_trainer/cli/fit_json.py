"""JSON output of the command ``fit``."""

from __future__ import annotations

from collections.abc import Sequence

from topwork.printable import file_name
from topwork.training.embed import Skipped
from topwork_trainer.fit.fit import FitResult
from topwork_trainer.fit.held_out import SplitResult
from topwork_trainer.kinds import sizes_json


def fit_json(result: FitResult) -> dict[str, object]:
    """Return what ``fit --json`` prints."""
    metrics, manifest = result.metrics, result.manifest
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "labels": list(manifest.labels),
        "accuracy": metrics.accuracy,
        "accuracy_low": metrics.accuracy_low,
        "accuracy_high": metrics.accuracy_high,
        "per_class": {
            label.label: {
                "images": label.images,
                "precision": label.precision,
                "recall": label.recall,
            }
            for label in metrics.per_label
        },
        "seconds": result.seconds,
        "log_loss": metrics.log_loss,
        "folds": metrics.folds,
        "images": metrics.images,
        "confusion": [list(row) for row in metrics.confusion],
        "backbone": result.backbone.name,
        "seed": manifest.seed,
        "data_digest": manifest.data_digest,
        "skipped": _skipped_json(result.skipped),
        "head": {
            "kind": manifest.chosen.kind,
            "normalisation": manifest.chosen.normalisation,
            "strength": manifest.chosen.strength,
        },
        "ece": metrics.ece,
        "unknown_auroc": metrics.unknown.auroc if metrics.unknown else None,
        "precision": result.backbone.precision,
        **sizes_json(result.backbone.preprocess),
        "notes": list(result.notes),
        "held_out": [_split_json(split) for split in result.held_out],
        "left_out": [group.json() for group in result.left_out],
        "findings": [
            {"kind": finding.kind, "severity": finding.severity, "message": finding.message}
            for finding in result.findings
        ],
        "report": file_name(result.report),
    }


def _split_json(split: SplitResult) -> dict[str, object]:
    accuracy, low, high = split.interval or (None, None, None)
    return {
        "split": split.split,
        "images": split.images,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "repeated": split.repeated,
        "related": split.related,
        "skipped": _skipped_json(split.skipped),
    }


def _skipped_json(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    return [{"image": image.name, "error": image.message} for image in skipped]
