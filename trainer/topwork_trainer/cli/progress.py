"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from topwork.terminal import Console
from topwork_trainer.fit.attempts import OnStageProgress


@contextmanager
def stages() -> Iterator[OnStageProgress]:
    """Yield a progress callback that shows one bar per stage."""
    tasks: dict[str, TaskID] = {}
    with _progress() as progress:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    _complete(progress, task)
                tasks[stage] = progress.add_task(stage, total=total or None)
            progress.update(tasks[stage], completed=done)

        yield update
        for task in tasks.values():
            _complete(progress, task)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield a function that advances the bar by one step."""
    with _progress() as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def counter(description: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Yield a function that shows a bar of a total, and returns one that advances it."""
    with _progress() as progress:

        def begin(total: int) -> Callable[[int], None]:
            task = progress.add_task(description, total=total)
            return lambda count: progress.advance(task, count)

        yield begin


def _complete(progress: Progress, task_id: TaskID) -> None:
    for task in progress.tasks:
        if task.id == task_id and not task.finished:
            total = task.total or 1
            progress.update(task.id, total=total, completed=total)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
