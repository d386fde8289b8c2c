"""Health that follows what does the work, not just the process that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse
_UNKNOWN = _Status.SERVICE_UNKNOWN

log = structlog.get_logger(__name__)

BEAT_SECONDS = 0.5
"""How often is looked."""


class Health:
    """Says of each service whether it works, by a check of each that is asked every beat."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = checks
        self._said: dict[str, bool] = {}
        self._task: asyncio.Task[None] | None = None
        self.servicer = _Servicer()

    async def start(self) -> None:
        """Look at once, then once a beat."""
        await self._look()
        self._task = asyncio.create_task(self._beat(), name="health")

    async def aclose(self) -> None:
        """Say NOT_SERVING from now on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for service in self._checks:
            await self.servicer.set(service, _Status.NOT_SERVING)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await self._look()

    async def _look(self) -> None:
        for service, check in self._checks.items():
            works = check()
            if self._said.get(service) == works:
                continue
            await self.servicer.set(service, _Status.SERVING if works else _Status.NOT_SERVING)
            if service in self._said and works:
                log.info("health", service=service, serving=True)
            elif service in self._said:
                log.warning("health", service=service, serving=False)
            self._said[service] = works


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped base
    """grpc.health.v1.Health. The library's own forgets all who watch when one of them leaves."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def set(self, service: str, status: int) -> None:
        """Set a service's status and tell those who watch it."""
        async with self._changed:
            self._statuses[service] = status
            self._changed.notify_all()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        """See the contract."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return _Status(status=self._statuses[request.service])

    async def Watch(
        self, request: Any, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """See the contract."""
        said = None
        while True:
            async with self._changed:
                while said == (status := self._statuses.get(request.service, _UNKNOWN)):
                    await self._changed.wait()
            said = status
            yield _Status(status=said)
