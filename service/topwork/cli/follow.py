"""Progress bar and result of an operation, printed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from google.longrunning import operations_pb2
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from topwork import CallFailed, Client, progress, rejected, result, tables
from topwork.cli import show_change, show_result
from topwork.client import outcomes
from topwork.inputs.folders import LeftOut
from topwork.terminal import Console
from topwork.v1 import evaluation_pb2 as evaluation_pb


def progress_bar() -> Progress:
    """Return a progress bar on standard error."""
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def follow(
    client: Client, accepted: operations_pb2.Operation, bar: Progress
) -> operations_pb2.Operation:
    """Show an operation's progress and return the finished operation. Raises CallFailed."""
    bar.console.print(f"accepted as {accepted.name}", highlight=False)
    task = bar.add_task("queued", total=None)
    for operation in client.watch(accepted.name):
        state = progress(operation)
        bar.update(task, description=show_change.stage(state))
        if state.total:
            bar.update(task, total=state.total, completed=state.done)
        accepted = operation
    bar.update(task, total=1, completed=1)
    return accepted


def print_result(
    finished: operations_pb2.Operation,
    seconds: float,
    left_out: Sequence[LeftOut] | None = None,
    *,
    as_json: bool,
) -> None:
    """Print the result of a change, ``seconds`` after the call. Raises CallFailed if it failed.

    ``left_out``, the files that were not uploaded, is printed only as JSON: ``photo_files`` has
    printed it as text.
    """
    if finished.response.Is(evaluation_pb.Evaluation.DESCRIPTOR):
        print_evaluation(finished, seconds, as_json=as_json)
        return
    try:
        response = result(finished)
    except CallFailed as error:
        if as_json:
            print(json.dumps(show_change.failed_json(finished.name, error)))
        elif (comparison := rejected(error)) is not None:
            tables.console().print(show_change.compared(comparison))
        raise
    if as_json:
        changed = show_change.changed_json(finished, response, seconds)
        if left_out is not None:
            changed["left_out"] = [files.json() for files in left_out]
        print(json.dumps(changed))
    else:
        show_change.changed(tables.console(), finished, response, seconds)


def print_evaluation(finished: operations_pb2.Operation, seconds: float, *, as_json: bool) -> None:
    """Print the result of an evaluation, as ``print_result``. Raises CallFailed if it failed."""
    show_result.print_result(outcomes.evaluation(finished), as_json=as_json, seconds=seconds)


def follow_and_print(
    client: Client, accepted: operations_pb2.Operation, start: float, *, as_json: bool
) -> None:
    """Follow an operation and print its result; the call was made at ``start``."""
    with progress_bar() as bar:
        finished = follow(client, accepted, bar)
    print_result(finished, time.perf_counter() - start, as_json=as_json)
