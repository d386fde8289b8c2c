"""``topwork classify``: stream photos to a server and print a line for each."""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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

from topwork import Client, ImageResult
from topwork.cli.options import (
    ServerOptions,
    connected,
    json_output,
    model_option,
    photo_files,
    read_photo,
    server_option,
)
from topwork.errors import ImageError
from topwork.inputs.folders import group
from topwork.printable import file_name, printable
from topwork.terminal import Console, LocalPath

READERS = 4
AHEAD = 16
"""Threads that read files, and files read ahead: a network disk has a long latency."""

PATIENCE_SECONDS = 1
"""Longest time from Ctrl-C to the interrupt while no row arrives."""

Row = dict[str, Any]


@click.command()
@server_option
@model_option
@click.option(
    "--revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision that classifies; 0: the serving one.",
)
@click.option("--top-k", default=5, type=click.IntRange(min=1), help="Predictions per image.")
@json_output
@click.argument("images", nargs=-1, required=True, type=LocalPath(path_type=Path))
def classify(
    server: ServerOptions,
    model: str,
    revision: int,
    top_k: int,
    as_json: bool,
    images: tuple[Path, ...],
) -> None:
    """Classify IMAGES (files or folders).

    --json prints one object per image: image, revision, predictions, unknown_probability,
    is_unknown, error. If files of a folder were left out, a last object has the key left_out with
    reason, count and names. Exit status 1 if an image could not be classified.
    """
    listing = photo_files(images, field="images")
    files = listing.files
    failed = False
    with (
        connected(server) as client,
        closing(_rows(client, model, files, revision, top_k)) as rows,
        _line_printer(len(files)) as print_line,
        _interrupts() as check_interrupt,
    ):
        for row in rows:
            failed |= row["error"] is not None
            print_line(json.dumps(row) if as_json else _line(row))
            check_interrupt()
    if as_json and listing.omitted:
        print(json.dumps({"left_out": [left_out.json() for left_out in group(listing.omitted)]}))
    sys.exit(1 if failed else 0)


def _rows(
    client: Client, model: str, files: Sequence[Path], revision: int, top_k: int
) -> Generator[Row, None, None]:
    """Yield a row per file, in order."""
    sent: deque[tuple[Path, str | None]] = deque()

    def contents() -> Iterator[bytes]:  # runs in another thread, ahead of the rows
        for path, content in _read(files):
            if isinstance(content, bytes):
                sent.append((path, None))
                yield content
            else:
                sent.append((path, content))

    def unreadable() -> Iterator[Row]:
        while sent and (error := sent[0][1]) is not None:
            yield _failure(sent.popleft()[0], None, error)

    stream = client.classify_stream(model, contents(), revision=revision, top_k=top_k)
    with closing(stream) as answers:
        for answer in answers:
            yield from unreadable()
            path, _ = sent.popleft()
            yield _row(path, answer.revision, answer.result)
    yield from unreadable()


def _read(files: Sequence[Path]) -> Iterator[tuple[Path, bytes | str]]:
    """Yield each file with its content or an error message; reads AHEAD files ahead."""
    ahead: deque[tuple[Path, Future[bytes | str]]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    try:
        for path in files:
            ahead.append((path, pool.submit(_content, path)))
            if len(ahead) > AHEAD:
                first, content = ahead.popleft()
                yield first, content.result()
        for first, content in ahead:
            yield first, content.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _content(path: Path) -> bytes | str:
    try:
        return read_photo(path)
    except ImageError as error:
        return str(error)


@contextmanager
def _line_printer(total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a photo's line and advances a bar on standard error."""
    if not sys.stderr.isatty():
        yield lambda line: print(line, flush=True)
        return
    bar = Progress(
        TextColumn("classifying"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
        redirect_stdout=False,  # redirected, standard output would go to standard error
    )
    with bar:
        task = bar.add_task("", total=total)

        def print_line(line: str) -> None:
            if sys.stdout.isatty():  # the same terminal: the line goes above the bar
                bar.console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
            else:
                print(line, flush=True)
            bar.advance(task)

        yield print_line


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
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


def _row(path: Path, revision: int, result: ImageResult) -> Row:
    if result.error is not None:
        return _failure(path, revision, str(result.error))
    return {
        "image": file_name(path),
        "revision": revision,
        "predictions": [prediction._asdict() for prediction in result.predictions],
        "unknown_probability": result.unknown_probability,
        "is_unknown": bool(result.is_unknown),
        "error": None,
    }


def _failure(path: Path, revision: int | None, message: str) -> Row:
    return {
        "image": file_name(path),
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
