"""Ctrl-C and crashes of commands, also while they import.

Imports few modules: before it is imported, Ctrl-C prints Python's own traceback.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 128 + signal.SIGINT
"""Exit status of an interrupted command, as shells report it."""

REPEAT_SECONDS = 0.01
"""Delay before an interrupt that a finaliser swallowed is sent again."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT end the block, and the process, by SystemExit(STATUS).

    Imports need special care: C extensions turn an interrupted import into an ImportError, and an
    exception in the weak reference callback of an import is printed and lost. A second SIGINT
    kills the process. An ignored SIGINT, as in a shell's background jobs, stays ignored. A crash
    prints the Python stacks of all threads.
    """
    if sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        sys.exit(STATUS)

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if interrupted and isinstance(lost.exc_value, SystemExit):
            import threading

            threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(lost)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    before, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    except BaseException:
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise SystemExit(STATUS) from None
        raise
    finally:
        sys.unraisablehook = before
        if not interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
