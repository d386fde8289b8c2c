"""Iterator over a caller's items for gRPC's sending thread, closed by the caller's thread.

gRPC's thread is a daemon. If it returned from native code in the caller's items after the end of
the interpreter, C++ would abort the process.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")

LEAVE_SECONDS = 2.0
"""Raising it waits longer at the end of a call for an item that is being produced."""


class Source(Generic[T]):
    """Iterates over ``items`` in one thread until the thread that opened it closes it.

    An exception of ``items`` ends it and is stored as ``failure``. ``exhausted`` is True once all
    items were returned.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._changed = threading.Condition()
        self._inside = False
        self._closed = False
        self.exhausted = False
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        atexit.register(self._close)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        atexit.unregister(self._close)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            if self._closed or self.failure is not None:
                raise StopIteration
            self._inside = True
        try:
            return next(self._items)
        except StopIteration:
            self.exhausted = True
            raise
        except BaseException as error:
            self.failure = error
            raise StopIteration from None
        finally:
            with self._changed:
                self._inside = False
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside, LEAVE_SECONDS)
