"""CPU time and memory of a server's process tree."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

WORKER = b"TOPWORK_PROCESS=topwork-worker"
"""Part of the environment of the worker process, and of no other process of ``topwork serve``."""


class Processes:
    """A process and its present children, except those with ``without`` in their environment."""

    def __init__(self, pid: int, *, without: bytes | None = None) -> None:
        self._pids = _tree(pid, without)

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far."""
        return sum(cpu_seconds(pid) for pid in self._pids)

    def memory_mib(self) -> float:
        """Return the memory as PSS, which counts shared pages once."""
        return sum(_memory_mib(pid) for pid in self._pids)


def kill(pid: int) -> None:
    """Send SIGKILL to a process and its children in any session."""
    for each in _tree(pid, None):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def free_port() -> int:
    """Return a free port of the loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _tree(root: int, without: bytes | None) -> list[int]:
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if without is None or without not in (directory / "environ").read_bytes():
                parents[int(directory.name)] = int(_stat(int(directory.name))[1])
    pids = [root]
    for pid in pids:  # grows as children are found
        pids += [child for child, parent in parents.items() if parent == pid]
    return pids


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used so far."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat, starting at the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _memory_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except ProcessLookupError:  # a zombie
        return 0.0
    (line,) = (line for line in lines if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024
