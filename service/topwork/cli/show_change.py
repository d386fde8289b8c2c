"""Tables and JSON of a change of a model and its result."""

from __future__ import annotations

from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from rich.table import Table

from topwork import CallFailed, progress, rejected, tables
from topwork.cli import show
from topwork.terminal import Console
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import revision_pb2 as revision_pb

_DONE = {
    "add_class": "{label} added",
    "add_examples": "examples of {label} added",
    "add_classes": "{labels} added or extended",
    "remove_class": "{label} removed",
    "rename_class": "{label} renamed to {new}",
    "retrain": "head retrained",
    "remove_examples": "{examples} removed",
    "move_examples": "{examples} moved to {label}",
}


def kind(metadata: change_pb.ChangeMetadata) -> str:
    """Return the kind of a change, such as ``add_class``."""
    return _named(change_pb.ChangeKind, metadata.kind, prefix="CHANGE_KIND_")


def stage(metadata: change_pb.ChangeMetadata) -> str:
    """Return the stage of a change, such as ``embedding``."""
    return _named(change_pb.ChangeStage, metadata.stage, prefix="CHANGE_STAGE_")


def seconds_of(duration: Duration) -> float:
    """Return a duration in seconds."""
    return float(duration.ToNanoseconds() / 1e9)


def changed(
    console: Console,
    operation: operations_pb2.Operation,
    response: change_pb.ChangeResponse,
    seconds: float,
) -> None:
    """Print the result of a change that ended ``seconds`` after the call."""
    metadata, revision = progress(operation), response.revision
    if response.HasField("comparison"):
        count = len(response.examples)
        done = _DONE.get(kind(metadata), "changed").format(
            label=metadata.label,
            labels=", ".join(metadata.labels),
            new=metadata.new_label,
            examples=f"{count} example{'' if count == 1 else 's'}",
        )
        end = "nothing was changed" if metadata.validate_only else f"revision {revision.revision}"
        _line(console, f"{done}: {end}")
        table = compared(response.comparison)
        table.add_row("accuracy on all labels", "-", show.accuracy(revision.metrics))
        console.print(table)
    elif response.missing_labels:
        missing = response.missing_labels
        _line(console, f"the model serves after {missing} more label{'' if missing == 1 else 's'}")
    elif response.images_used:
        end = "nothing was changed" if metadata.validate_only else f"revision {revision.revision}"
        _line(console, f"first revision: {end}, accuracy {show.accuracy(revision.metrics)}")
    else:
        _line(console, f"nothing to do: revision {revision.revision} serves")
    times = response.stage_times
    _line(
        console,
        f"{seconds:.2f} s from the call to its end (embedding {response.images_used} images "
        f"{seconds_of(times.embedding):.2f} s, solving {seconds_of(times.solving):.2f} s)",
    )
    for example in response.examples:
        _line(console, f"{example.digest} no longer has the label {', '.join(example.labels)}")
    if metadata.kind == change_pb.CHANGE_KIND_REMOVE_EXAMPLES and not metadata.validate_only:
        _line(
            console,
            f"revision {response.old_revision} retains the data until `topwork gc` deletes it; "
            "`topwork gc --erase DIGEST` does so at once",
        )
    for skipped in response.skipped_images:
        _line(console, f"left out {skipped.display_name}: {skipped.error.message}")
    for conflict in response.conflicts:
        _line(
            console,
            f"{conflict.display_name} duplicates {conflict.other_name or 'an image'}, "
            f"which has the label {conflict.label}",
        )
    for failure in response.gate_failures:
        _line(console, f"the gate would reject it: {failure}")
    for finding in response.findings:
        _line(console, f"{finding.severity}: {finding.message}")


def compared(comparison: revision_pb.Comparison) -> Table:
    """Return a table that compares a revision with its parent."""
    rows = [
        (
            "accuracy on the old labels",
            f"{comparison.accuracy_before:.3f}",
            f"{comparison.accuracy_after:.3f}",
        ),
        (
            "lost (95 % interval)",
            "",
            f"{comparison.drop:.3f} ({comparison.drop_low:.3f}..{comparison.drop_high:.3f})",
        ),
        (
            "calibration error",
            f"{comparison.calibration_error_before:.3f}",
            f"{comparison.calibration_error_after:.3f}",
        ),
    ]
    rows += [
        (
            f"recall of {taught.label}",
            "-",
            f"{taught.recall:.3f} ({taught.recall_low:.3f}..{taught.recall_high:.3f})",
        )
        for taught in comparison.taught_labels
    ]
    rows += [
        (f"{pair.label} predicted as {pair.called}", "", f"{pair.images} ({pair.share:.0%})")
        for pair in comparison.confusions[:3]
    ]
    return tables.table(("", "before", "after"), rows)


def changed_json(
    operation: operations_pb2.Operation, response: change_pb.ChangeResponse, seconds: float
) -> dict[str, Any]:
    """Return the result of a change as JSON data."""
    metadata, times = progress(operation), response.stage_times
    return {
        "operation": operation.name,
        "kind": kind(metadata),
        "validate_only": metadata.validate_only,
        "revision": response.revision.revision,
        "labels": list(response.revision.labels),
        "metrics": show.metrics_json(response.revision.metrics),
        "comparison": comparison_json(response.comparison)
        if response.HasField("comparison")
        else None,
        "missing_labels": response.missing_labels,
        "images_used": response.images_used,
        "skipped": [
            {
                "image": skipped.display_name,
                "label": skipped.label,
                "error": skipped.error.message,
            }
            for skipped in response.skipped_images
        ],
        "conflicts": [
            {
                "image": conflict.display_name,
                "uploaded_label": conflict.uploaded_label,
                "label": conflict.label,
                "other": conflict.other_name,
                "exact": conflict.exact,
            }
            for conflict in response.conflicts
        ],
        "old_revision": response.old_revision,
        "examples": [
            {"digest": example.digest, "labels": list(example.labels)}
            for example in response.examples
        ],
        "gate_failures": list(response.gate_failures),
        "findings": [
            {"kind": finding.kind, "severity": finding.severity, "message": finding.message}
            for finding in response.findings
        ],
        "seconds": {
            "queued": seconds_of(times.queued),
            "embedding": seconds_of(times.embedding),
            "solving": seconds_of(times.solving),
            "publishing": seconds_of(times.publishing),
            "total": seconds,
        },
    }


def failed_json(operation: str, error: CallFailed) -> dict[str, Any]:
    """Return the error of a change as JSON data, with the comparison if the gate rejected it."""
    comparison = rejected(error)
    numbers = {} if comparison is None else {"comparison": comparison_json(comparison)}
    return {"operation": operation, "error": str(error), "reason": error.reason, **numbers}


def comparison_json(comparison: revision_pb.Comparison) -> dict[str, Any]:
    """Return a comparison as JSON data."""
    taught = [
        {
            "label": label.label,
            "images": label.images,
            "recall": label.recall,
            "recall_low": label.recall_low,
            "recall_high": label.recall_high,
        }
        for label in comparison.taught_labels
    ]
    return {
        "images": comparison.images,
        "accuracy_before": comparison.accuracy_before,
        "accuracy_after": comparison.accuracy_after,
        "drop": comparison.drop,
        "drop_low": comparison.drop_low,
        "drop_high": comparison.drop_high,
        "calibration_error_before": comparison.calibration_error_before,
        "calibration_error_after": comparison.calibration_error_after,
        "labels": {
            row.label: {
                "images": row.images,
                "recall_before": row.recall_before,
                "recall_after": row.recall_after,
            }
            for row in comparison.labels
        },
        "taught": taught,
        "confusions": [
            {"label": pair.label, "called": pair.called, "images": pair.images, "share": pair.share}
            for pair in comparison.confusions
        ],
    }


def _named(enum: Any, number: int, *, prefix: str) -> str:
    """Return the name of an enum value, or its number if only newer servers know it."""
    known = number in enum.values()
    return str(enum.Name(number)).removeprefix(prefix).lower() if known else str(number)


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
