"""Poller: one query for all callers that wait for the next state of an operation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Poller(Generic[T]):
    """Polls while callers wait. Belongs to one event loop.

    ``fetch`` is called every ``seconds`` with the keys of all waiting callers, and returns the
    value of each key, or the exception to raise in its callers.
    """

    def __init__(
        self,
        fetch: Callable[[Collection[str]], Awaitable[Mapping[str, T | Exception]]],
        seconds: float,
    ) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._waiting: dict[str, list[asyncio.Future[T]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def next(self, key: str) -> T:
        """Return the value of ``key`` at the next poll, or raise its exception."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._poll())
        return await future

    async def aclose(self) -> None:
        """Stop polling; waiting callers get CancelledError."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for future in self._futures():
            future.cancel()

    async def _poll(self) -> None:
        try:
            while any(not future.done() for future in self._futures()):
                await asyncio.sleep(self._seconds)
                waiting, self._waiting = self._waiting, {}
                values: Mapping[str, T | Exception]
                try:
                    values = await self._fetch(waiting.keys())
                except Exception as error:
                    values = dict.fromkeys(waiting, error)
                for key, futures in waiting.items():
                    _settle(futures, values[key])
                await asyncio.sleep(0)  # callers that continue wait again
        finally:
            self._task = None

    def _futures(self) -> list[asyncio.Future[T]]:
        return [future for futures in self._waiting.values() for future in futures]


def _settle(futures: list[asyncio.Future[T]], value: T | Exception) -> None:
    for future in futures:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)
