"""Wiring of the parts of a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from topwork.client import calls
from topwork.config import ServeConfig
from topwork.rpc import calls as server_calls
from topwork.rpc.server import Server


def test_health_port_shares_slots_by_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers on the health port leave slots to other hosts."""
    monkeypatch.setattr(server_calls, "MOST_CALLS", 2)

    async def scenario() -> str:
        server = Server(ServeConfig(repository=Path("repository"), health_port="127.0.0.1:0"))
        with capture_logs() as logs:
            health = server._make_health_server()
        assert health is not None
        await health.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{logs[0]['port']}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Watch(health_pb2.HealthCheckRequest()).read()
            watch.cancel()
        await health.stop(None)
        return calls.failed(caught.value).reason

    assert asyncio.run(scenario()) == "TOO_MANY_CALLS"
