"""Monitor: polls the database of operations and the disk for the metrics of a server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Protocol, get_args

import structlog

from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind
from topwork.changes.quota import Quotas
from topwork.changes.rows import OperationState
from topwork.errors import TopworkError, Unavailable
from topwork.limits import ServerLimits
from topwork.telemetry import Telemetry

log = structlog.get_logger(__name__)

POLL_SECONDS = 10.0
"""Raising it reads the database and the disk less often, and delays the metrics."""

QUOTA_SECONDS = 300.0
"""Raising it adds up the files of the models less often."""

OVERLAP = timedelta(minutes=1)
"""Raising it tolerates clocks of workers that are slower."""

STATES = ("queued", "running")

RESULTS = ("OK", "GATE_FAILED", "STORAGE", "DATA_LOSS", "INTERNAL")
"""Results that have a series before they occur."""


class Source(Protocol):
    """The operations of a repository. Both methods raise Unavailable."""

    async def unfinished(self) -> Sequence[tuple[bool, float]]:
        """See Operations."""

    async def finished(self, since: datetime) -> Sequence[OperationState]:
        """See Operations."""


class Monitor:
    """Sets the metrics of changes and disk while it runs. Belongs to one event loop."""

    def __init__(
        self,
        repository: Repository,
        operations: Source,
        quotas: Quotas,
        *,
        models: Callable[[], Sequence[str]],
        most_models: int,
        limits: ServerLimits,
        telemetry: Telemetry,
    ) -> None:
        """Take the serving models' names; the first ``most_models`` have a metric of their own."""
        self._storage = repository.storage
        self._operations = operations
        self._quotas = quotas
        self._models = models
        self._most_models = most_models
        self._limits = limits
        self._telemetry = telemetry
        self._metrics = telemetry.changes
        self._since = datetime.now(UTC)
        self._seen: set[str] | None = None
        self._measured: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Poll now, and begin to poll."""
        self._metrics.quota.set(self._limits.max_model_bytes)
        for kind in get_args(ChangeKind):  # from 0 on, so that the first one is an increase
            for result in RESULTS:
                self._metrics.finished.labels(kind, result)
        await self.poll()
        self._task = asyncio.create_task(self._run(), name="monitor")

    async def aclose(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def poll(self) -> None:
        """Set the metrics of the database and of the disk's free space."""
        try:
            await self._poll_database()
        except Unavailable:
            self._metrics.database.set(0)
        else:
            self._metrics.database.set(1)
        with contextlib.suppress(OSError):  # the registry logs a repository that cannot be read
            space = await asyncio.to_thread(self._storage.space)
            free, inodes = (space.free_bytes, space.free_files) if space else (None, None)
            self._metrics.free_bytes.set(float("inf") if free is None else free)
            self._metrics.free_inodes.set(float("inf") if inodes is None else inodes)

    async def measure_models(self) -> None:
        """Set the bytes of the models, and remove those of the deleted ones."""
        models = self._models()[: self._most_models]
        for model in models:
            try:
                quota = await asyncio.to_thread(self._quotas.of, model)
            except (TopworkError, OSError):
                continue  # it was deleted, or the repository cannot be read now
            self._metrics.model_bytes.labels(model).set(quota.used)
            self._measured.add(model)
        for model in self._measured.difference(models):
            self._metrics.model_bytes.remove(model)
        self._measured.intersection_update(models)

    async def _run(self) -> None:
        measured = -QUOTA_SECONDS
        while True:
            try:
                if time.monotonic() - measured >= QUOTA_SECONDS:
                    measured = time.monotonic()
                    await self.measure_models()
                await asyncio.sleep(POLL_SECONDS)
                await self.poll()
            except Exception:
                log.exception("metrics cannot be updated")
                await asyncio.sleep(POLL_SECONDS)

    async def _poll_database(self) -> None:
        now = datetime.now(UTC)
        unfinished = await self._operations.unfinished()
        for running, state in enumerate(STATES):
            accepted = [since for runs, since in unfinished if runs == bool(running)]
            oldest = now.timestamp() - min(accepted, default=now.timestamp())
            self._metrics.unfinished.labels(state).set(len(accepted))
            self._metrics.oldest.labels(state).set(max(0.0, oldest))
        finished = await self._operations.finished(self._since - OVERLAP)
        if self._seen is not None:
            for operation in finished:
                if operation.id not in self._seen:
                    self._count(operation)
        self._seen, self._since = {operation.id for operation in finished}, now

    def _count(self, operation: OperationState) -> None:
        outcome, kind = operation.outcome, operation.subject.kind or "other"
        if outcome is None:
            return
        if outcome.failure is not None:
            reason = outcome.failure.reason or "INTERNAL"
            self._metrics.finished.labels(kind, reason).inc()
            if reason == "GATE_FAILED":
                self._telemetry.models.gate_rejected(operation.subject.model)
            return
        self._metrics.finished.labels(kind, "OK").inc()
        if outcome.result is not None:
            for stage, seconds in asdict(outcome.result.seconds).items():
                self._metrics.stage_seconds.labels(stage).observe(seconds)
