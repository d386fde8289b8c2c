"""Tables and JSON of evaluation sets and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
from rich.table import Table

from topwork import CallFailed, tables
from topwork.cli import show
from topwork.cli.show_change import comparison_json
from topwork.printable import printable
from topwork.terminal import Console
from topwork.v1 import evaluation_pb2 as evaluation_pb


def result(console: Console, found: evaluation_pb.Evaluation) -> None:
    """Print the result of a revision on labelled images."""
    table = tables.table(("", ""), [*_facts(found)])
    table.show_header = False
    console.print(table)
    if found.metrics.per_label:
        rows = [
            (row.label, f"{row.images:,}", f"{row.precision:.3f}", f"{row.recall:.3f}")
            for row in found.metrics.per_label
        ]
        headers = ("label", "images", "precision", "recall")
        console.print("", tables.table(headers, rows, copied=["label"]))
    if found.subgroups:
        rows = [
            (
                row.column,
                row.value or "(none)",
                f"{row.images:,}",
                f"{row.right / row.images:.3f} ({row.accuracy_low:.3f}..{row.accuracy_high:.3f})",
            )
            for row in found.subgroups
        ]
        console.print("", tables.table(("column", "value", "images", "accuracy"), rows))


def print_result(
    found: evaluation_pb.Evaluation, *, as_json: bool, seconds: float | None = None
) -> None:
    """Print a result; its notes on standard error."""
    if as_json:
        more = {} if seconds is None else {"seconds": seconds}
        print(json.dumps({**result_json(found), **more}))
        return
    for note in notes(found):
        click.echo(printable(note), err=True)
    result(tables.console(), found)


def result_json(found: evaluation_pb.Evaluation) -> dict[str, Any]:
    """Return a result as JSON data."""
    metrics, unknown = found.metrics, found.unknown
    judged = found.HasField("metrics")
    return {
        "model": found.model.removeprefix("models/"),
        "revision": found.revision,
        "evaluation_set": set_name(found.name) or None,
        "operation": found.operation,
        "images": metrics.images,
        "accuracy": metrics.accuracy if judged else None,
        "accuracy_low": metrics.accuracy_low if judged else None,
        "accuracy_high": metrics.accuracy_high if judged else None,
        "log_loss": metrics.log_loss if judged else None,
        "ece": metrics.expected_calibration_error if judged else None,
        "per_class": {
            row.label: {"images": row.images, "precision": row.precision, "recall": row.recall}
            for row in metrics.per_label
        },
        "unknown": {
            "known": unknown.known_images,
            "false_rejects": unknown.false_rejects,
            "unknown": unknown.unknown_images,
            "detected": unknown.detected,
            "auroc": unknown.auroc if unknown.HasField("auroc") else None,
        }
        if found.HasField("unknown")
        else None,
        "subgroups": [
            {
                "column": row.column,
                "value": row.value,
                "images": row.images,
                "right": row.right,
                "ece": row.expected_calibration_error,
            }
            for row in found.subgroups
        ],
        "compared_revision": found.compared_revision or None,
        "comparison": comparison_json(found.comparison) if found.HasField("comparison") else None,
        "lacking": {row.label: row.images for row in found.lacking_labels},
        "repeated": found.repeated_images,
        "related": found.related_images,
        "skipped": [
            {"image": image.display_name, "error": image.error.message}
            for image in found.skipped_images
        ],
        "gate_failure": found.gate_failure or None,
    }


def notes(found: evaluation_pb.Evaluation) -> Iterator[str]:
    """Yield sentences about images that do not count."""
    if found.repeated_images:
        yield f"{_images(found.repeated_images)} left out: trained on, exactly or nearly"
    if found.related_images:
        yield f"{_images(found.related_images)} left out: of groups that were trained on"
    if found.lacking_labels:
        named = ", ".join(f"{row.label!r} {row.images:,}" for row in found.lacking_labels[:10])
        yield f"Images of labels that the revision lacks count as unknown images: {named}"
    if found.skipped_images:
        first = found.skipped_images[0]
        error = CallFailed(first.error)
        yield f"{_images(len(found.skipped_images))} skipped, {first.display_name}: {error}"


def sets(found: list[evaluation_pb.EvaluationSet]) -> Table:
    """Return a table of evaluation sets."""
    rows = [
        (
            set_name(row.name),
            f"{row.images:,}",
            str(sum(bool(count.label) for count in row.labels)),
            f"{row.max_drop:g}" if row.HasField("max_drop") else "-",
            show.moment(_time(row.create_time)),
        )
        for row in found
    ]
    headers = ("evaluation set", "images", "labels", "gate: largest drop", "stored")
    return tables.table(headers, rows, copied=["evaluation set"])


def set_json(row: evaluation_pb.EvaluationSet) -> dict[str, Any]:
    """Return an evaluation set as JSON data."""
    return {
        "evaluation_set": set_name(row.name),
        "max_drop": row.max_drop if row.HasField("max_drop") else None,
        "images": row.images,
        "stored_images": row.stored_images,
        "labels": {count.label: count.images for count in row.labels},
        "renamed_labels": dict(sorted(row.renamed_labels.items())),
        "columns": list(row.columns),
        "backbones": list(row.backbones),
        "created": _time(row.create_time),
        "operation": row.operation,
    }


def one_set(row: evaluation_pb.EvaluationSet) -> Table:
    """Return a table of the facts of an evaluation set."""
    lost = row.images - row.stored_images
    files = f"{lost:,} not stored: it cannot judge other backbones" if lost else "all stored"
    labels = ", ".join(
        f"{count.label or '(unknown)'} {count.images:,}"
        + (f" (now {new})" if (new := row.renamed_labels.get(count.label)) else "")
        for count in row.labels
    )
    facts = [
        ("evaluation set", set_name(row.name)),
        ("gate", f"largest drop {row.max_drop:g}" if row.HasField("max_drop") else "no"),
        ("images", f"{row.images:,}, {files}"),
        ("labels", labels),
        ("backbones", ", ".join(digest[:12] for digest in row.backbones)),
        ("stored", f"{show.moment(_time(row.create_time))} {row.operation}".rstrip()),
    ]
    table = tables.table(("", ""), facts)
    table.show_header = False
    return table


def results(found: list[evaluation_pb.Evaluation], *, named: bool = False) -> Table:
    """Return a table of results, with the name of the set if ``named``."""
    rows = [
        (
            *([set_name(row.name)] if named else []),
            str(row.revision),
            f"{row.metrics.images:,}",
            show.accuracy(row.metrics),
            _drop(row),
            "rejects" if row.gate_failure else "",
        )
        for row in found
    ]
    first = ["evaluation set"] if named else []
    return tables.table((*first, "revision", "images", "accuracy (95 %)", "drop", "gate"), rows)


def set_name(name: str) -> str:
    """Return the name of a set in the resource name of it, or of a result; empty for none."""
    return name.split("/")[3] if name else ""


def _facts(found: evaluation_pb.Evaluation) -> Iterator[tuple[str, str]]:
    yield "model", f"{found.model.removeprefix('models/')}, revision {found.revision}"
    if found.name:
        yield "evaluation set", set_name(found.name)
    if not found.HasField("metrics"):
        yield "accuracy", "no image that can be judged has a label of the revision"
        return
    yield "images", f"{found.metrics.images:,}"
    yield "accuracy", show.accuracy(found.metrics)
    yield "calibration error", f"{found.metrics.expected_calibration_error:.3f}"
    yield "log loss", f"{found.metrics.log_loss:.3f}"
    unknown = found.unknown
    if not found.HasField("unknown"):
        yield "unknown images", "not detected by this head"
    else:
        yield "false rejects", _rejected(unknown.false_rejects, unknown.known_images)
        if unknown.unknown_images:
            text = _rejected(unknown.detected, unknown.unknown_images)
            yield "unknown images", f"{text}, AUROC {unknown.auroc:.3f}"
    if found.comparison.images:
        before, after = found.comparison.accuracy_before, found.comparison.accuracy_after
        yield (
            "mean recall",
            f"{before:.3f} in revision {found.compared_revision}, {after:.3f} in "
            f"{found.revision}: drop {_drop(found)}; {found.comparison.images:,} images",
        )
    if found.gate_failure:
        yield "gate", f"rejects: {found.gate_failure}"


def _drop(found: evaluation_pb.Evaluation) -> str:
    compared = found.comparison
    if not compared.images:
        return "-"
    return f"{compared.drop:+.3f} ({compared.drop_low:+.3f}..{compared.drop_high:+.3f})"


def _rejected(part: int, images: int) -> str:
    return f"{part / images:.3f}: {part:,} of {images:,} called unknown"


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _time(moment: Any) -> str:
    return str(moment.ToDatetime().isoformat(timespec="seconds")) + "Z"
