"""Data loader that decodes images in threads while the network computes. Imports torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from topwork.errors import ImageError, InvalidInput
from topwork.training.embed import ImageSource

_AHEAD = 2
"""Raising it decodes more batches ahead and needs more memory."""


def batches(
    pool: Executor,
    sources: Sequence[ImageSource],
    rows: Sequence[int],
    view: Callable[[bytes, int], Tensor],
    *,
    size: int,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield ``size`` of ``rows`` at a time, (n,), with their views, uint8 (n, crop, crop, 3).

    ``view`` maps the encoded image of a row to its view; it runs in the threads of ``pool``. The
    order does not depend on the threads. Raises InvalidInput for an image that cannot be read.
    """

    def load(row: int) -> Tensor:
        source = sources[row]
        try:
            return view(read(source), row)
        except ImageError as error:
            raise _unreadable(source, error) from error

    waiting: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
    try:
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            waiting.append((torch.tensor(batch), [pool.submit(load, row) for row in batch]))
            if len(waiting) > _AHEAD:
                yield _stack(waiting.popleft())
        while waiting:
            yield _stack(waiting.popleft())
    finally:
        for _, views in waiting:
            for view_of_row in views:
                view_of_row.cancel()


def read(source: ImageSource) -> bytes:
    """Return the encoded image. Raises InvalidInput if it cannot be read."""
    try:
        return source.read()
    except (OSError, ImageError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: ImageSource, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{source.name} cannot be read: {error}; remove it and start again", field="data"
    )


def _stack(batch: tuple[Tensor, list[Future[Tensor]]]) -> tuple[Tensor, Tensor]:
    rows, views = batch
    return rows, torch.stack([view.result() for view in views])
