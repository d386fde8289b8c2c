"""Poller: one look at the database for all who wait for the next state of an operation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Poller(Generic[T]):
    """Polls while somebody waits. Belongs to one event loop.

    ``look`` is called with all keys that are waited for, ``seconds`` after the look before, and
    returns the value of each key, or the exception that those who wait for it get.
    """

    def __init__(
        self,
        look: Callable[[Collection[str]], Awaitable[Mapping[str, T | Exception]]],
        seconds: float,
    ) -> None:
        self._look = look
        self._seconds = seconds
        self._waiting: dict[str, list[asyncio.Future[T]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def next(self, key: str) -> T:
        """Return the value of ``key`` at the next look. Raises what that look gives or raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._poll())
        return await future

    async def aclose(self) -> None:
        """Stop polling; who waits gets CancelledError."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for future in self._futures():
            future.cancel()

    async def _poll(self) -> None:
        try:
            while any(not one.done() for one in self._futures()):
                await asyncio.sleep(self._seconds)
                waiting, self._waiting = self._waiting, {}
                found: Mapping[str, T | Exception]
                try:
                    found = await self._look(waiting.keys())
                except Exception as error:
                    found = dict.fromkeys(waiting, error)
                for key, futures in waiting.items():
                    _settle(futures, found[key])
                await asyncio.sleep(0)  # they ask again, if at all
        finally:
            self._task = None

    def _futures(self) -> list[asyncio.Future[T]]:
        return [one for futures in self._waiting.values() for one in futures]


def _settle(futures: list[asyncio.Future[T]], value: T | Exception) -> None:
    for future in futures:
        if future.done():  # its caller has gone
            continue
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)
