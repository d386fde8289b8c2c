"""Monitor: metrics of changes, database and disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support import stored

from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeOutcome, ChangeResult, Failure, Progress, StageSeconds
from topwork.changes.monitor import Monitor
from topwork.changes.quota import Quotas
from topwork.changes.rows import OperationState, Subject
from topwork.errors import Unavailable
from topwork.limits import DEFAULT_LIMITS
from topwork.telemetry import Telemetry


class Operations:
    """Operations that a test sets."""

    def __init__(self) -> None:
        self.states: list[tuple[bool, float]] = []
        self.ended: list[OperationState] = []
        self.available = True

    async def unfinished(self) -> Sequence[tuple[bool, float]]:
        """Return the unfinished operations."""
        if not self.available:
            raise Unavailable("no database", reason="DATABASE")
        return self.states

    async def finished(self, since: datetime) -> Sequence[OperationState]:
        """Return the finished operations."""
        return [state for state in self.ended if state.ended is None or state.ended > since]

    def end(self, identifier: str, outcome: ChangeOutcome) -> None:
        """Add a finished operation."""
        now = datetime.now(UTC)
        self.ended.append(
            OperationState(
                id=identifier,
                subject=Subject(kind="add_class", model="m"),
                created=now,
                ended=now,
                progress=Progress(),
                outcome=outcome,
            )
        )


class Setting:
    """A monitor of a repository, with its telemetry."""

    def __init__(self, root: Path, models: list[str]) -> None:
        self.repository = Repository(root)
        self.telemetry = Telemetry()
        self.operations = Operations()
        self.monitor = Monitor(
            self.repository,
            self.operations,
            Quotas(self.repository, DEFAULT_LIMITS),
            models=lambda: models,
            most_models=2,
            limits=DEFAULT_LIMITS,
            telemetry=self.telemetry,
        )

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a series, or None if it does not exist."""
        return self.telemetry._registry.get_sample_value(name, labels)

    def finished(self, result: str) -> float | None:
        """Return the number of finished operations with this result."""
        return self.value("topwork_finished_operations_total", kind="add_class", result=result)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Return a monitor of an empty repository."""
    return Setting(tmp_path, [])


def run(*calls: Callable[[], Awaitable[None]]) -> None:
    """Run calls one after another."""

    async def play() -> None:
        for call in calls:
            await call()

    asyncio.run(play())


def test_unfinished_operations_are_counted_with_their_age(setting: Setting) -> None:
    """Queued and running ones apart; without any the age is 0."""
    now = datetime.now(UTC).timestamp()
    setting.operations.states = [(False, now - 500), (False, now - 5), (True, now - 60)]
    run(setting.monitor.poll)
    assert setting.value("topwork_operations", state="queued") == 2
    assert setting.value("topwork_operations", state="running") == 1
    for state, seconds in (("queued", 500), ("running", 60)):
        age = setting.value("topwork_oldest_operation_seconds", state=state)
        assert age == pytest.approx(seconds, abs=30)
    setting.operations.states = []
    run(setting.monitor.poll)
    assert setting.value("topwork_operations", state="queued") == 0
    assert setting.value("topwork_oldest_operation_seconds", state="queued") == 0


def test_finished_operations_are_counted_once(setting: Setting) -> None:
    """Those that ended before the first poll are not counted, later ones once, by reason."""
    setting.operations.end("old", ChangeOutcome(result=ChangeResult()))
    run(setting.monitor.poll)
    seconds = StageSeconds(queued=1.0, embedding=2.0, solving=3.0, publishing=4.0)
    setting.operations.end("good", ChangeOutcome(result=ChangeResult(seconds=seconds)))
    setting.operations.end("bad", ChangeOutcome(failure=Failure(reason="GATE_FAILED")))
    setting.operations.end("lost", ChangeOutcome(failure=Failure(reason="STORAGE")))
    run(setting.monitor.poll, setting.monitor.poll)
    assert [setting.finished(name) for name in ("OK", "GATE_FAILED", "STORAGE")] == [1, 1, 1]
    for stage, total in (("queued", 1), ("embedding", 2), ("solving", 3), ("publishing", 4)):
        assert setting.value("topwork_operation_stage_seconds_sum", stage=stage) == total
    assert setting.value("topwork_operation_stage_seconds_count", stage="solving") == 1
    assert (
        sum(
            sample.value
            for family in setting.telemetry.models.collect()
            for sample in family.samples
            if sample.name == "topwork_gate_rejections_total"
        )
        == 1
    )


def test_unavailable_database_is_reported(setting: Setting) -> None:
    """The gauge is 0 until it answers; what finished meanwhile is counted then."""
    run(setting.monitor.poll)
    assert setting.value("topwork_database_up") == 1
    setting.operations.available = False
    setting.operations.end("late", ChangeOutcome(result=ChangeResult()))
    run(setting.monitor.poll)
    assert setting.value("topwork_database_up") == 0
    assert setting.finished("OK") is None
    setting.operations.available = True
    run(setting.monitor.poll)
    assert setting.value("topwork_database_up") == 1
    assert setting.finished("OK") == 1


def test_free_space_is_that_of_the_repository(setting: Setting) -> None:
    """Bytes and inodes are positive; a repository that cannot be read changes nothing."""
    run(setting.monitor.poll)
    free = setting.value("topwork_repository_free_bytes")
    assert free
    assert setting.value("topwork_repository_free_inodes")
    setting.repository.root.rmdir()
    run(setting.monitor.poll)
    assert setting.value("topwork_repository_free_bytes") == free


def test_bytes_of_models_are_measured(tmp_path: Path) -> None:
    """The first models have a gauge until they are deleted."""
    models = ["a", "b", "c"]
    setting = Setting(tmp_path, models)
    for model in models:
        stored.publish(setting.repository, [stored.put_shard(setting.repository, 1)], model=model)
    run(setting.monitor.measure_models)
    used = Quotas(setting.repository, DEFAULT_LIMITS).of("a").used
    assert setting.value("topwork_model_bytes", model="a") == used > 0
    assert setting.value("topwork_model_bytes", model="c") is None
    models.remove("a")
    run(setting.monitor.measure_models)
    assert setting.value("topwork_model_bytes", model="a") is None
    assert setting.value("topwork_model_bytes", model="c") is not None
