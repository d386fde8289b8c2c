"""Steady load of Classify calls by both clients, and the calls that failed."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

from support import servers
from support.pictures import picture
from topwork import AsyncClient, CallFailed, Client

SECONDS = 30.0
"""Timeout of a call."""


class Load:
    """Calls Classify until the ``with`` block ends, one call at a time by each client."""

    def __init__(self, target: str, model: str) -> None:
        self.failures: list[CallFailed] = []
        self._target = target
        self._model = model
        self._image = picture("blue", 50)
        self._stopping = threading.Event()
        self._answered = {self._call: 0, self._call_async: 0}
        self._threads = [
            threading.Thread(target=self._call),
            threading.Thread(target=lambda: asyncio.run(self._call_async())),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        """Number of calls that each client had answered, of the slower client."""
        return min(self._answered.values())

    def wait(self, calls: int = 20) -> None:
        """Wait until each client has made so many more calls without a failure."""
        until = self.answered + calls
        servers.eventually(lambda: self.answered >= until or self.failures)
        assert not self.failures, self.failures

    def _call(self) -> None:
        with Client(self._target) as client:
            while not self._stopping.is_set():
                try:
                    client.classify(self._model, [self._image], timeout=SECONDS)
                    self._answered[self._call] += 1
                except CallFailed as error:
                    self.failures.append(error)

    async def _call_async(self) -> None:
        async with AsyncClient(self._target) as client:
            while not self._stopping.is_set():
                try:
                    await client.classify(self._model, [self._image], timeout=SECONDS)
                    self._answered[self._call_async] += 1
                except CallFailed as error:
                    self.failures.append(error)
