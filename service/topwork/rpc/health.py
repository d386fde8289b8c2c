"""Health that follows what does the work, not just the process that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog
from grpc_health.v1 import health, health_pb2

log = structlog.get_logger(__name__)

BEAT_SECONDS = 1.0
"""How often is looked."""


class Health:
    """Says of each service whether it works, by a check of each that is asked every second."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = checks
        self._said: dict[str, bool] = {}
        self._task: asyncio.Task[None] | None = None
        self.servicer = health.aio.HealthServicer()

    async def start(self) -> None:
        """Look at once, then once a beat."""
        await self._look()
        self._task = asyncio.create_task(self._beat(), name="health")

    async def aclose(self) -> None:
        """Say NOT_SERVING from now on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.servicer.enter_graceful_shutdown()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await self._look()

    async def _look(self) -> None:
        for service, check in self._checks.items():
            works = check()
            if self._said.get(service) == works:
                continue
            status = health_pb2.HealthCheckResponse
            await self.servicer.set(service, status.SERVING if works else status.NOT_SERVING)
            if service in self._said:
                log.warning("health", service=service, serving=works)
            self._said[service] = works
