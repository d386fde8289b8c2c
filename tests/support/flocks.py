"""Locks for the tests of object stores: files in a directory of the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from topwork.storage import files
from topwork.storage.locks import Lease


class Flocks:
    """Locks by ``flock``; ``lost`` makes the check after a block fail."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.lost = False

    @contextlib.contextmanager
    def locked(self, name: str, *, shared: bool = False) -> Iterator[Callable[[], None]]:
        """Hold a lock."""

        def check() -> None:
            if self.lost:
                raise OSError("the lock was lost")

        self._directory.mkdir(parents=True, exist_ok=True)
        with files.locked(self._directory / f"{name.replace('/', '%')}.lock", shared=shared):
            yield check

    def claim(self, name: str, *, on_wait: Callable[[], None] = lambda: None) -> Lease:
        """Not needed here."""
        raise NotImplementedError

    def try_claim(self, name: str) -> Lease | None:
        """Not needed here."""
        raise NotImplementedError
