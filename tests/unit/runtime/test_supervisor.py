"""The supervisor of a worker process, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from support import workers

from topwork.runtime import supervisor
from topwork.runtime.supervisor import GAVE_UP, Supervisor


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the supervisor start workers again after hundredths of seconds."""
    monkeypatch.setattr(supervisor, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_RESTART_SECONDS", 0.03)


async def until(condition: Callable[[], Any]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # of another process
            await asyncio.sleep(0.005)


def pids(directory: Path) -> list[int]:
    """Return the process ids of the workers that have not returned."""
    return [int(path.name) for path in directory.iterdir() if path.name.isdigit()]


def test_killed_worker_is_replaced(tmp_path: Path) -> None:
    """After SIGKILL the supervisor does not work until a new process says that it does."""

    async def scenario() -> None:
        supervised = Supervisor("test", workers.work, tmp_path)
        assert not supervised.works()
        supervised.start()
        await until(supervised.works)
        [first] = pids(tmp_path)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not supervised.works())
        await until(supervised.works)
        assert len(pids(tmp_path)) == 2
        await supervised.aclose()
        assert not supervised.works()

    with capture_logs() as lines:
        asyncio.run(scenario())
    assert lines == [
        {
            "event": "worker died",
            "log_level": "error",
            "process": "test",
            "exit_code": -signal.SIGKILL,
            "pause": 0.01,
        }
    ]


def test_aclose_lets_the_worker_return(tmp_path: Path) -> None:
    """Closing the pipe is enough: the worker ends by itself, and no other one starts."""

    async def scenario() -> None:
        supervised = Supervisor("test", workers.work, tmp_path)
        supervised.start()
        await until(supervised.works)
        assert pids(tmp_path)
        await supervised.aclose()

    with capture_logs() as lines:
        asyncio.run(scenario())
    assert not pids(tmp_path)
    assert not lines


def test_worker_starts_with_signals_blocked(tmp_path: Path) -> None:
    """SIGINT and SIGTERM are blocked in the new process, and in this one as before."""

    async def scenario() -> None:
        supervised = Supervisor("test", workers.work_deaf, tmp_path)
        supervised.start()
        await until(supervised.works)
        await supervised.aclose()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    asyncio.run(scenario())
    assert (tmp_path / "blocked True").exists()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "pauses"), [(GAVE_UP, [0.02, 0.03, 0.03]), (1, [0.01, 0.01, 0.01])]
)
def test_pause_doubles_only_after_giving_up(status: int, pauses: list[float]) -> None:
    """The pause doubles up to its limit after GAVE_UP, and stays the same after a crash."""

    async def scenario(lines: list[Any]) -> None:
        supervised = Supervisor("test", workers.end, status)
        supervised.start()
        await until(lambda: len(lines) >= 3)
        await supervised.aclose()

    with capture_logs() as lines:
        asyncio.run(scenario(lines))
    assert [line["pause"] for line in lines[:3]] == pauses
    assert {line["exit_code"] for line in lines} == {status}


def test_failed_start_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails for lack of memory or processes is logged and tried again."""
    spawn = Supervisor._spawn
    failures = [OSError("no memory"), OSError("no processes")]

    def spawn_late(self: Supervisor[Path]) -> None:
        if pids(tmp_path) and failures:
            raise failures.pop(0)
        spawn(self)

    monkeypatch.setattr(Supervisor, "_spawn", spawn_late)

    async def scenario() -> None:
        supervised = Supervisor("test", workers.work, tmp_path)
        supervised.start()
        await until(supervised.works)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        await until(lambda: len(pids(tmp_path)) == 2 and supervised.works())
        await supervised.aclose()

    with capture_logs() as lines:
        asyncio.run(scenario())
    assert [line.get("error") for line in lines] == [None, "no memory", "no processes"]
