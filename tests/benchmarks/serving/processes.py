"""What a server's processes cost: CPU time and memory, of all of them together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

LEARNER = b"spawn_main"
"""In the command line of the process that runs AddClass, and in no other of ``topwork serve``."""


class Processes:
    """A process and its children, as they are when it is looked at, but for AddClass's worker."""

    def __init__(self, pid: int, *, without: bytes | None = None) -> None:
        self._pids = _tree(pid, without)

    def cpu_seconds(self) -> float:
        """Return the processor time that they used so far."""
        return sum(_cpu_seconds(pid) for pid in self._pids)

    def memory_mib(self) -> float:
        """Return their memory (PSS: what they share counts once)."""
        return sum(_memory_mib(pid) for pid in self._pids)


def kill(pid: int) -> None:
    """End a process and its children at once, in whatever sessions they are."""
    for each in _tree(pid, None):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _tree(root: int, without: bytes | None) -> list[int]:
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if without is None or without not in (directory / "cmdline").read_bytes():
                parents[int(directory.name)] = int(_stat(int(directory.name))[1])
    found = [root]
    for pid in found:  # grows as children are found
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _memory_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except ProcessLookupError:  # it has ended, and its parent has not asked how
        return 0.0
    (line,) = (line for line in lines if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024
