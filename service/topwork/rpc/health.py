"""Health of each service (grpc.health.v1), from checks of what does the work."""

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

CHECK_SECONDS = 0.5
"""Raising it makes health follow the checks more slowly."""


class Health:
    """Publishes the health of each service, from a check that runs every CHECK_SECONDS."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = checks
        self._reported: dict[str, bool] = {}
        self._task: asyncio.Task[None] | None = None
        self.servicer = _Servicer()

    async def start(self) -> None:
        """Run all checks now, and from now on regularly."""
        await self._check_all()
        self._task = asyncio.create_task(self._run(), name="health")

    async def aclose(self) -> None:
        """Report NOT_SERVING from now on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for service in self._checks:
            await self.servicer.set(service, _Status.NOT_SERVING)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self._check_all()

    async def _check_all(self) -> None:
        for service, check in self._checks.items():
            works = check()
            if self._reported.get(service) == works:
                continue
            await self.servicer.set(service, _Status.SERVING if works else _Status.NOT_SERVING)
            if service in self._reported and works:
                log.info("health", service=service, serving=True)
            elif service in self._reported:
                log.warning("health", service=service, serving=False)
            self._reported[service] = works


class _Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped base
    """grpc.health.v1.Health. The library's own forgets all watchers when one of them leaves."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Condition()

    async def set(self, service: str, status: int) -> None:
        """Set a service's status and notify its watchers."""
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
        reported = None
        while True:
            async with self._changed:
                while reported == (status := self._statuses.get(request.service, _UNKNOWN)):
                    await self._changed.wait()
            reported = status
            yield _Status(status=reported)
