"""Locks between the writers of a repository: files on one file system, or a database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class LockLost(OSError):
    """A lock was lost, or locks cannot be reached now; the message is a sentence for people."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.strerror = text  # an OSError without a number has none


class Lease(Protocol):
    """A name that one process holds; it ends with the process."""

    def held(self) -> bool:
        """Return True unless the lease was lost, such as by a restart of the database."""

    def release(self) -> None:
        """Give the name back."""


class Locks(Protocol):
    """Locks by name, which end with the process that holds them.

    Names are keys of directories, such as ``models/flowers``; the root is ``""``. All methods raise
    LockLost if the locks cannot be reached now.
    """

    def locked(
        self, name: str, *, shared: bool = False
    ) -> AbstractContextManager[Callable[[], None]]:
        """Hold a lock, exclusively or ``shared``; other processes and threads wait.

        Yields a function that raises LockLost if the lock was lost meanwhile.
        """

    def claim(self, name: str, *, on_wait: Callable[[], None] = lambda: None) -> Lease:
        """Hold a name until the process ends; waits for another holder, after ``on_wait()``."""

    def try_claim(self, name: str) -> Lease | None:
        """Hold a name if nobody does; None: another process holds it."""
