"""Small repository in memory that targets of one process read and change."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from support import tiny

from topwork.bundle.store import Repository
from topwork.limits import DEFAULT_LIMITS

MODEL = "colours"
LIMITS = DEFAULT_LIMITS


@functools.cache
def directory() -> Path:
    """Return a directory for this process, in memory if possible."""
    memory = Path("/dev/shm")  # noqa: S108  # with a unique name below
    made = Path(tempfile.mkdtemp(prefix="topwork-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def repository() -> Repository:
    """Return a repository with a model of four colours."""
    return tiny.repository(directory() / "repository")
