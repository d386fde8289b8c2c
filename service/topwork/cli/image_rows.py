"""Rows of ``topwork classify`` and ``topwork predict``: a line for each input."""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from topwork import ImageResult, StreamResult
from topwork.cli.bucket_inputs import list_objects
from topwork.cli.input_files import Inputs, list_inputs
from topwork.cli.input_kinds import Item
from topwork.cli.options import json_output
from topwork.cli.patterns import expand
from topwork.client.inputs import Content
from topwork.errors import ImageError
from topwork.in_order import in_order
from topwork.inputs.folders import by_reason
from topwork.printable import printable
from topwork.terminal import Console, PathOrURL

READERS = 4
AHEAD = 16
"""Threads that read files, and files read ahead: a network disk has a long latency."""

PATIENCE_SECONDS = 1
"""Longest time from Ctrl-C to the interrupt while no row arrives."""

T = TypeVar("T")
Row = dict[str, Any]
Classify: TypeAlias = Callable[[Iterator[Content]], Generator[StreamResult, None, None]]
"""Yields the result of each input, in order."""


def image_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the arguments ``images``, ``texts``, ``revision``, ``top_k``, ``as_json``."""
    for decorate in (
        click.argument("images", nargs=-1, type=PathOrURL(path_type=Path)),
        click.option(
            "--text",
            "texts",
            multiple=True,
            help="A text to classify, for a model of texts; may be repeated.",
        ),
        json_output,
        click.option(
            "--top-k", default=5, type=click.IntRange(min=1), help="Predictions per input."
        ),
        click.option(
            "--revision",
            default=0,
            type=click.IntRange(min=0),
            help="Revision that classifies; 0: the serving one.",
        ),
    ):
        command = decorate(command)
    return command


def given_inputs(images: Sequence[Path | str], texts: Sequence[str]) -> Inputs:
    """Return the inputs of ``image_arguments``: texts, those in files, and those in buckets.

    Paths and URLs may be patterns. Raises UsageError without any, InvalidInput.
    """
    if not images and not texts:
        raise click.UsageError("Missing argument 'IMAGES...', or --text.")
    objects = [list_objects(url, field="images") for url in images if isinstance(url, str)]
    paths = expand([path for path in images if isinstance(path, Path)])
    return list_inputs(paths, field="images", texts=texts, objects=objects)


def classify_inputs(inputs: Inputs, classify: Classify, *, as_json: bool) -> None:
    """Print a row for each input, then exit with status 1 if one could not be classified."""
    failed = False
    with (
        closing(_rows(inputs.items, classify)) as rows,
        _line_printer(len(inputs.items)) as print_line,
        interrupts() as check_interrupt,
    ):
        for row in rows:
            failed |= row["error"] is not None
            print_line(json.dumps(row) if as_json else _line(row))
            check_interrupt()
    if as_json and inputs.left_out:
        print(json.dumps({"left_out": [group.json() for group in by_reason(inputs.left_out)]}))
    sys.exit(1 if failed else 0)


def _rows(items: Sequence[Item], classify: Classify) -> Generator[Row, None, None]:
    """Yield a row per item, in order."""
    with closing(answered(items, lambda item: item[1](), classify)) as answers:
        for (name, _), answer in answers:
            if isinstance(answer, str):
                yield _failure(name, None, answer)
            else:
                yield _row(name, answer.revision, answer.result)


def answered(
    items: Sequence[T], read: Callable[[T], Content], classify: Classify
) -> Generator[tuple[T, StreamResult | str], None, None]:
    """Yield each item with its result, or the error of reading it, in order.

    Reads AHEAD items ahead; ``read`` raises OSError or ImageError.
    """
    sent: deque[tuple[T, str | None]] = deque()

    def content(item: T) -> Content | str:
        try:
            return read(item)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"the file cannot be read: {error.strerror}"

    def contents() -> Iterator[Content]:  # may run in another thread, ahead of the results
        for item, found in in_order(content, items, threads=READERS, ahead=AHEAD, waits=False):
            if not isinstance(found, str):
                sent.append((item, None))
                yield found
            else:
                sent.append((item, found))

    def unreadable() -> Iterator[tuple[T, str]]:
        while sent and (error := sent[0][1]) is not None:
            yield sent.popleft()[0], error

    with closing(classify(contents())) as answers:
        for answer in answers:
            yield from unreadable()
            yield sent.popleft()[0], answer
    yield from unreadable()


@contextmanager
def _line_printer(total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a photo's line and advances a bar on standard error."""
    if not sys.stderr.isatty():
        yield lambda line: print(line, flush=True)
        return
    with photo_bar() as bar:
        task = bar.add_task("", total=total)

        def print_line(line: str) -> None:
            if sys.stdout.isatty():  # the same terminal: the line goes above the bar
                bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
            else:
                print(line, flush=True)
            bar.advance(task)

        yield print_line


def photo_bar() -> Progress:
    """Return a bar of classified photos, on standard error."""
    return Progress(
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
        redirect_stdout=False,  # redirected, standard output would go to standard error
    )


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that raises a pending SIGINT's exception.

    SIGINT is deferred, because an exception inside gRPC's book-keeping breaks one of its threads
    later. If the function is not called within PATIENCE_SECONDS, the exception is raised anyway.
    """
    interrupted = False

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        signal.alarm(PATIENCE_SECONDS)

    before = signal.getsignal(signal.SIGINT)

    def check() -> None:
        if interrupted:
            assert callable(before), "otherwise SIGINT is not deferred"
            before(signal.SIGINT, None)

    if not callable(before):  # SIGINT is ignored
        yield check
        return
    alarm = signal.signal(signal.SIGALRM, before)
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        if interrupted:
            signal.alarm(0)
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGALRM, alarm)


class _Speed(ProgressColumn):
    """Column of photos per second."""

    def render(self, task: Task) -> Text:
        """See ProgressColumn."""
        return Text(
            "" if task.speed is None else f"{task.speed:.0f}/s", style="progress.data.speed"
        )


def _row(name: str, revision: int, result: ImageResult) -> Row:
    if result.error is not None:
        return _failure(name, revision, str(result.error))
    return {
        "image": name,
        "revision": revision,
        "predictions": [prediction._asdict() for prediction in result.predictions],
        "unknown_probability": result.unknown_probability,
        "is_unknown": bool(result.is_unknown),
        "error": None,
    }


def _failure(name: str, revision: int | None, message: str) -> Row:
    return {
        "image": name,
        "revision": revision,
        "predictions": [],
        "unknown_probability": None,
        "is_unknown": False,
        "error": message,
    }


def _line(row: Row) -> str:
    if row["error"] is not None:
        return printable(f"{row['image']}: error: {row['error']}")
    predictions = "  ".join(
        f"{prediction['label']} {prediction['probability']:.3f}"
        for prediction in row["predictions"]
    )
    unknown = f"  (unknown {row['unknown_probability']:.3f})" if row["is_unknown"] else ""
    return printable(f"{row['image']}: {predictions}{unknown}")
