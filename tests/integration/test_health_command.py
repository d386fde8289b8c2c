"""`topwork health`: the exit status says whether a server serves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from support.servers import Command

from topwork.rpc.server import SERVICES


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield an address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def not_serving() -> Iterator[str]:
    """Yield the address of a server with the health status NOT_SERVING."""
    servicer = HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait()


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_of_a_serving_service_exits_with_0(topwork: Command, service: str) -> None:
    """The exit status is 0 for a server and each of its services that is SERVING."""
    assert topwork("health", "--service", service) == (0, "SERVING\n", "")


def test_health_of_a_not_serving_server_exits_with_1(topwork: Command, not_serving: str) -> None:
    """The exit status is 1 for a server that is NOT_SERVING."""
    assert topwork("health", address=not_serving) == (1, "NOT_SERVING\n", "")


def test_health_of_an_unknown_service_exits_with_1(topwork: Command) -> None:
    """The exit status is 1 for an unknown service; the error names it."""
    status, output, errors = topwork("health", "--service", "no.such.Service")
    assert (status, output) == (1, "")
    assert "no.such.Service" in errors


def test_health_without_an_answer_times_out(topwork: Command, silent: str) -> None:
    """The exit status is 1 after --timeout seconds without an answer."""
    status, output, errors = topwork("health", "--timeout", "0.1", address=silent)
    assert (status, output) == (1, "")
    assert "error:" in errors


def test_health_without_a_server_exits_with_1(topwork: Command, silent: str) -> None:
    """The exit status is 1 at once if no server listens, as before one is ready."""
    port = int(silent.rpartition(":")[2])
    status, output, errors = topwork("health", "--timeout", "60", address=f"127.0.0.2:{port}")
    assert (status, output) == (1, "")
    assert "error:" in errors


def test_health_uses_no_proxy(
    topwork: Command, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request goes to the server itself whatever proxy the environment names."""
    monkeypatch.setenv("http_proxy", f"http://{silent}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert topwork("health") == (0, "SERVING\n", "")
