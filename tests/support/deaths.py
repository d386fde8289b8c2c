"""Deaths of processes at chosen calls, and notes of calls."""

from __future__ import annotations

import functools
import json
import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEATHS = "TOPWORK_TEST_DEATHS"
"""Variable in the environment: JSON of a list of the repository and the calls to die at."""


def arrange() -> None:
    """Make this process die right after the calls that a test named, once each per repository."""
    repository, *deaths = json.loads(os.environ.get(DEATHS, '[""]'))
    for number, death in enumerate(deaths):
        target, _, argument = death.partition("=")
        marker = Path(repository) / f"death-{number}"
        wrap(target, functools.partial(_dying, argument=argument, marker=marker))


def wrap(target: str, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function or method, such as ``module:class.method``, by its wrapper."""
    module, _, path = target.partition(":")
    owner_path, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(f"{module}:{owner_path}" if owner_path else module)
    setattr(owner, name, wrapped(getattr(owner, name)))


def note_calls(target: str, notes: str) -> None:
    """Make this process append its id to the file ``notes`` at each call."""

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def called(*args: Any, **kwargs: Any) -> Any:
            with Path(notes).open("a") as file:
                file.write(f"{os.getpid()}\n")
            return call(*args, **kwargs)

        return called

    wrap(target, noting)


def _dying(call: Callable[..., Any], argument: str, marker: Path) -> Callable[..., Any]:
    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if not marker.exists() and (not argument or argument in args):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called
