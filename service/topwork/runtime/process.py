"""Process-wide settings: memory of Pillow, warnings, open files, telemetry, priority."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import warnings
from typing import Literal, TypeAlias

Priority: TypeAlias = Literal["idle", "normal"]

_ENVIRONMENT = {
    # Recent versions otherwise send usage data to their makers, and store it in the user's home.
    "ORT_DISABLE_TELEMETRY": "1",
    # Pillow otherwise returns the memory of each image to the system and allocates pages again for
    # the next one: a quarter of the time to decode a JPEG, more with many threads. It caches at
    # most 32 blocks.
    "PILLOW_BLOCK_SIZE": "4m",
    "PILLOW_BLOCKS_MAX": "32",
    # Prometheus' client library otherwise adds a series with a time to each counter and histogram.
    "PROMETHEUS_DISABLE_CREATED_SERIES": "true",
}
"""Read by the libraries when they are imported; children inherit it."""

_NOISY = (r"PIL\.", r"pydicom\.")
"""Modules that warn of damaged files. Each different warning would stay in memory."""


def configure() -> None:
    """Configure this process. Entry points call it before they import Pillow and ONNX Runtime.

    Environment variables that are already set are not changed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for module in _NOISY:
        warnings.filterwarnings("ignore", module=module)
    _allow_many_files()


def set_priority(priority: Priority) -> None:
    """Set the priority of this process and its later threads.

    ``idle`` gives them only time that others on the machine leave, ``normal`` changes nothing. On
    Linux by SCHED_IDLE: a thread that wakes up preempts it at once, while a process with
    niceness 19 may finish its time slice. The niceness counts where SCHED_IDLE is not allowed.
    """
    if priority == "normal":
        return
    os.nice(19)
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: each mapped shard keeps its file open.

    The soft limit is 1,024 on many hosts, for the sake of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
