"""`topwork health` tells whoever starts it, by its exit status alone, whether a server serves."""

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
    """Yield an address where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def ailing() -> Iterator[str]:
    """Yield the address of a server whose ``""`` is NOT_SERVING."""
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
def test_serving(topwork: Command, service: str) -> None:
    """Exit status 0 of a server and of each of its services that is SERVING."""
    assert topwork("health", "--service", service) == (0, "SERVING\n", "")


def test_not_serving(topwork: Command, ailing: str) -> None:
    """Exit status 1 of a server that answers and does not serve."""
    assert topwork("health", address=ailing) == (1, "NOT_SERVING\n", "")


def test_unknown_service(topwork: Command) -> None:
    """Exit status 1 of a service that there is not; the error names it."""
    status, output, errors = topwork("health", "--service", "no.such.Service")
    assert (status, output) == (1, "")
    assert "no.such.Service" in errors


def test_no_answer(topwork: Command, silent: str) -> None:
    """Exit status 1 after --timeout seconds without an answer."""
    status, output, errors = topwork("health", "--timeout", "0.1", address=silent)
    assert (status, output) == (1, "")
    assert "error:" in errors


def test_nobody_listens(topwork: Command, silent: str) -> None:
    """Exit status 1 at once where nobody listens, as before a server is ready."""
    port = int(silent.rpartition(":")[2])
    status, output, errors = topwork("health", "--timeout", "60", address=f"127.0.0.2:{port}")
    assert (status, output) == (1, "")
    assert "error:" in errors


def test_a_proxy_is_not_asked(
    topwork: Command, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever proxy the environment names, the server itself is asked."""
    monkeypatch.setenv("http_proxy", f"http://{silent}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert topwork("health") == (0, "SERVING\n", "")
