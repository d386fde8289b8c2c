"""Tables and JSON of an evaluation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from topwork import tables
from topwork.bundle.metrics import Metrics
from topwork.report import confusion
from topwork.report.comparison import ComparisonSection
from topwork.report.evaluation import Detection, Evaluated, compare, detection, subgroup_rows
from topwork.report.intervals import AccuracyChange, Share
from topwork.terminal import Console

CONFUSED = 10
"""Raising it shows more pairs of confused labels."""


def show(console: Console, evaluated: Evaluated) -> None:
    """Print an evaluation."""
    metrics, section = evaluated.evaluation.metrics, compare(evaluated)
    facts = tables.table(("", ""), _facts(evaluated, section))
    facts.show_header = False
    console.print(facts, "", _labels(metrics))
    if pairs := confusion.lay_out(metrics).pairs[:CONFUSED]:
        rows = [
            (pair.label, pair.predicted, f"{pair.images:,}", f"{pair.share:.1%}") for pair in pairs
        ]
        console.print("", tables.table(("label", "predicted as", "images", "share"), rows))
    if evaluated.evaluation.subgroups:
        console.print("", _subgroups(evaluated))
    if section is not None and section.changes:
        console.print("", _changes(section))


def _facts(evaluated: Evaluated, section: ComparisonSection | None) -> list[tuple[str, str]]:
    result = evaluated.evaluation
    metrics = result.metrics
    share = _share_text(metrics.accuracy, metrics.accuracy_low, metrics.accuracy_high)
    rows = [
        ("model", f"{evaluated.model}, revision {result.revision}"),
        ("images", f"{metrics.images:,}"),
        ("accuracy", share),
        ("calibration error", f"{metrics.ece:.3f}"),
        ("log loss", f"{metrics.log_loss:.3f}"),
    ]
    if result.unknown is None:
        rows.append(("unknown images", "not detected by this head"))
    else:
        rows += _detected(detection(result.unknown))
    if section is not None and section.accuracy is not None:
        change = section.accuracy
        rows.append(
            (
                "mean recall",
                f"{change.before:.3f} in revision {section.revision}, {change.after:.3f} in "
                f"{result.revision}: {_change_text(change)}; {section.paired:,} images",
            )
        )
    return rows


def _changes(section: ComparisonSection) -> Table:
    rows = [
        (
            row.label,
            f"{row.images:,}",
            f"{row.recall.before:.3f}",
            f"{row.recall.after:.3f}",
            _change_text(row.recall),
        )
        for row in section.rows
    ]
    headers = ("label", "images", "recall before", "after", "change")
    return tables.table(headers, rows, copied=["label"])


def as_json(evaluated: Evaluated) -> dict[str, Any]:
    """Return an evaluation as JSON data."""
    result = evaluated.evaluation
    metrics, found = result.metrics, result.unknown
    rates = None if found is None else detection(found)
    section = compare(evaluated)
    return {
        "model": evaluated.model,
        "revision": result.revision,
        "images": metrics.images,
        "accuracy": metrics.accuracy,
        "accuracy_low": metrics.accuracy_low,
        "accuracy_high": metrics.accuracy_high,
        "log_loss": metrics.log_loss,
        "ece": metrics.ece,
        "reliability": [asdict(group) for group in metrics.reliability if group.images],
        "per_class": {
            row.label: {"images": row.images, "precision": row.precision, "recall": row.recall}
            for row in metrics.per_label
        },
        "confusion": {"labels": evaluated.answers.labels, "counts": metrics.confusion},
        "unknown": None
        if rates is None
        else {
            "false_rejects": asdict(rates.false_rejects),
            "detected": None if rates.detected is None else asdict(rates.detected),
            "auroc": rates.auroc,
        },
        "subgroups": [asdict(row) for row in subgroup_rows(result)],
        "comparison": None
        if section is None
        else {
            "revision": section.revision,
            "images": section.paired,
            "accuracy": None if section.accuracy is None else _change_json(section.accuracy),
            "ece": section.ece_before,
            "added": section.added,
            "removed": section.removed,
            "per_class": {
                row.label: {"images": row.images, **_change_json(row.recall)}
                for row in section.changes
            },
        },
        "skipped": [{"image": name, "error": error} for name, error in evaluated.skipped],
        "left_out": [group.json() for group in evaluated.left_out],
        "notes": list(evaluated.notes),
    }


def _labels(metrics: Metrics) -> Table:
    rows = [
        (
            row.label,
            f"{row.images:,}",
            f"{row.precision:.3f}" if any(line[index] for line in metrics.confusion) else "-",
            f"{row.recall:.3f}" if row.images else "-",
        )
        for index, row in enumerate(metrics.per_label)
    ]
    return tables.table(("label", "images", "precision", "recall"), rows, copied=["label"])


def _subgroups(evaluated: Evaluated) -> Table:
    rows = [
        (
            row.column,
            row.value or "(none)",
            f"{row.accuracy.images:,}",
            _share_text(row.accuracy.value, row.accuracy.low, row.accuracy.high),
            f"{row.ece:.3f}",
            row.verdict,
        )
        for row in subgroup_rows(evaluated.evaluation)
    ]
    headers = ("column", "value", "images", "accuracy", "calibration error", "beside the others")
    return tables.table(headers, rows)


def _detected(rates: Detection) -> list[tuple[str, str]]:
    rows = [("false rejects", f"{_of(rates.false_rejects)} called unknown")]
    if rates.detected is not None:
        rows.append(
            ("unknown images", f"{_of(rates.detected)} called unknown, AUROC {rates.auroc:.3f}")
        )
    return rows


def _of(share: Share) -> str:
    return f"{_share_text(share.value, share.low, share.high)} of {share.images:,}"


def _share_text(value: float, low: float, high: float) -> str:
    return f"{value:.3f} ({low:.3f}..{high:.3f})"


def _change_text(change: AccuracyChange) -> str:
    return f"{change.value:+.3f} ({change.low:+.3f}..{change.high:+.3f}), {change.verdict}"


def _change_json(change: AccuracyChange) -> dict[str, object]:
    return {**asdict(change), "change": change.value, "verdict": change.verdict}
