"""Tables and JSON of a change of a model, from the queue to its result."""

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

_SAID = {
    "add_class": "{label} added",
    "add_examples": "{label} taught",
    "remove_class": "{label} removed",
    "rename_class": "{label} renamed to {new}",
    "retrain": "head solved anew",
}


def kind(metadata: change_pb.ChangeMetadata) -> str:
    """Return what is asked for, such as ``add_class``."""
    return _named(change_pb.ChangeKind, metadata.kind, prefix="CHANGE_KIND_")


def stage(metadata: change_pb.ChangeMetadata) -> str:
    """Return what is being done, such as ``embedding``."""
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
    """Print what a change did, before and after; ``seconds`` from the call to its end."""
    metadata, revision = progress(operation), response.revision
    if response.HasField("comparison"):
        said = _SAID.get(kind(metadata), "changed").format(
            label=metadata.label, new=metadata.new_label
        )
        end = "nothing was changed" if metadata.validate_only else f"revision {revision.revision}"
        _line(console, f"{said}: {end}")
        table = compared(response.comparison)
        table.add_row("accuracy on all labels", "-", show.accuracy(revision.metrics))
        console.print(table)
    else:
        _line(console, f"nothing was to be done: revision {revision.revision} serves")
    times = response.stage_times
    _line(
        console,
        f"{seconds:.2f} s from the call to its end (embedding {response.images_used} images "
        f"{seconds_of(times.embedding):.2f} s, solving {seconds_of(times.solving):.2f} s)",
    )
    for skipped in response.skipped_images:
        _line(console, f"left out {skipped.display_name}: {skipped.error.message}")
    for conflict in response.conflicts:
        _line(
            console,
            f"{conflict.display_name} shows what {conflict.other_name or 'an image'} shows, "
            f"labelled {conflict.label}",
        )
    for failure in response.gate_failures:
        _line(console, f"the gate would reject it: {failure}")
    for finding in response.findings:
        _line(console, f"{finding.severity}: {finding.message}")


def compared(comparison: revision_pb.Comparison) -> Table:
    """Return a table of a revision beside its parent."""
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
    if comparison.HasField("taught"):
        taught = comparison.taught
        recall = f"{taught.recall:.3f} ({taught.recall_low:.3f}..{taught.recall_high:.3f})"
        rows.append((f"recall of {taught.label}", "-", recall))
    rows += [
        (f"{one.label} called {one.called}", "", f"{one.images} ({one.share:.0%})")
        for one in comparison.confusions[:3]
    ]
    return tables.table(("", "before", "after"), rows)


def changed_json(
    operation: operations_pb2.Operation, response: change_pb.ChangeResponse, seconds: float
) -> dict[str, Any]:
    """Return what a change did as JSON data."""
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
        "images_used": response.images_used,
        "skipped": [
            {"image": one.display_name, "error": one.error.message}
            for one in response.skipped_images
        ],
        "conflicts": [
            {
                "image": one.display_name,
                "label": one.label,
                "other": one.other_name,
                "exact": one.exact,
            }
            for one in response.conflicts
        ],
        "gate_failures": list(response.gate_failures),
        "findings": [
            {"kind": one.kind, "severity": one.severity, "message": one.message}
            for one in response.findings
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
    """Return why a change failed as JSON data, with the numbers if its gate rejected it."""
    comparison = rejected(error)
    numbers = {} if comparison is None else {"comparison": comparison_json(comparison)}
    return {"operation": operation, "error": str(error), "reason": error.reason, **numbers}


def comparison_json(comparison: revision_pb.Comparison) -> dict[str, Any]:
    """Return a comparison as JSON data."""
    taught = comparison.taught
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
            one.label: {
                "images": one.images,
                "recall_before": one.recall_before,
                "recall_after": one.recall_after,
            }
            for one in comparison.labels
        },
        "taught": {
            "label": taught.label,
            "images": taught.images,
            "recall": taught.recall,
            "recall_low": taught.recall_low,
            "recall_high": taught.recall_high,
        }
        if comparison.HasField("taught")
        else None,
        "confusions": [
            {"label": one.label, "called": one.called, "images": one.images, "share": one.share}
            for one in comparison.confusions
        ],
    }


def _named(enum: Any, number: int, *, prefix: str) -> str:
    """Return the name of an enum's value; the number of one that only newer servers know."""
    known = number in enum.values()
    return str(enum.Name(number)).removeprefix(prefix).lower() if known else str(number)


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
