"""The gateway's HTTP server in this process, in front of no gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from topwork.client.credentials import ANONYMOUS
from topwork.config import GatewayConfig, ServeConfig, TlsFiles
from topwork.errors import InvalidInput, Overloaded, Unavailable
from topwork.gateway import connection, inbox, server
from topwork.gateway.inbox import Memory
from topwork.gateway.settings import GatewaySettings, http_address
from topwork.rpc.forwarding import Forwarding
from topwork.wire import forwarding
from topwork.wire.addresses import HostPort

T = TypeVar("T")
SECRET = "s" * 40
SETTINGS = GatewaySettings(
    server="127.0.0.1:1",  # where nothing listens
    credentials=ANONYMOUS,
    secret="",
    hosts=("localhost",),
    origins=(),
    console=True,
    tls=None,
    grace_seconds=1.0,
    log_format="text",
)


def serving(act: Callable[[int], Awaitable[T]], settings: GatewaySettings = SETTINGS) -> T:
    """Return the result of ``act``, called with the port of a gateway."""

    async def run() -> T:
        listener = server.listen(HostPort("127.0.0.1", 0))
        stop = asyncio.Event()
        task = asyncio.create_task(server.serve(settings, listener, stop))
        try:
            async with asyncio.timeout(30):
                return await act(listener.getsockname()[1])
        finally:
            stop.set()
            await task

    return asyncio.run(run())


async def exchange(port: int, *sent: bytes) -> bytes:
    """Send bytes on a new connection; return what comes until the gateway closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for chunk in sent:
        writer.write(chunk)
    found = await reader.read()
    writer.close()
    return found


def test_headers_that_do_not_end_close_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends headers too slowly is disconnected, before and after a request."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.05)
    whole = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    assert serving(exchange) == b""
    assert serving(lambda port: exchange(port, whole[:20])) == b""

    async def again(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(whole)
        await reader.readuntil(b"ok\n")
        writer.write(whole[:20])
        found = await reader.read()
        writer.close()
        return found

    assert serving(again) == b""


def test_body_that_arrives_too_slowly_gets_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body must arrive at a least rate."""
    monkeypatch.setattr(inbox, "QUIET_SECONDS", 0.05)
    head = b"POST /v1/models/m:classify HTTP/1.1\r\nhost: localhost\r\n"
    head += b"content-type: image/png\r\ncontent-length: 100\r\n\r\n"
    answer = serving(lambda port: exchange(port, head, b"x"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_SLOW" in answer


def test_endless_headers_are_refused() -> None:
    """Headers have at most 64 KiB."""
    head = b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000
    assert serving(lambda port: exchange(port, head)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"content-length: -1\r\n\r\n",
        b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ],
)
def test_ambiguous_length_is_refused(lines: bytes) -> None:
    """A request whose length two servers may read differently (smuggling) gets one error."""
    head = b"POST /v1/models HTTP/1.1\r\nhost: localhost\r\n"
    answer = serving(lambda port: exchange(port, head + lines))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.split()[1] in {b"400", b"415", b"501"}


def test_server_that_is_away_is_503() -> None:
    """Without a server the gateway answers UNAVAILABLE, and is alive but not ready."""
    close = b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answers = [
        serving(lambda port, path=path: exchange(port, b"GET " + path + close))  # type: ignore[misc]
        for path in (b"/livez", b"/readyz", b"/v2/health/ready")
    ]
    assert [answer.split()[1] for answer in answers] == [b"200", b"503", b"503"]
    assert b"UNAVAILABLE" in answers[1]


def test_port_that_is_taken_is_unavailable() -> None:
    """The error says that the port is in use."""
    with (
        server.listen(HostPort("127.0.0.1", 0)) as taken,
        pytest.raises(Unavailable, match="another process listens there"),
    ):
        server.listen(HostPort("127.0.0.1", taken.getsockname()[1]))


def test_memory_of_requests_is_bounded() -> None:
    """Bytes beyond the limit are refused until others are freed."""
    memory = Memory(10)
    memory.take(8)
    with pytest.raises(Overloaded):
        memory.take(3)
    memory.give(8)
    memory.take(10)


def test_plaintext_leaves_the_host_only_with_insecure() -> None:
    """As for gRPC: another host needs TLS or --insecure."""
    config = GatewayConfig(http_port="0.0.0.0:8080")
    with pytest.raises(InvalidInput, match="--insecure"):
        http_address(config)
    assert http_address(replace(config, insecure=True)).port == 8080
    with pytest.raises(InvalidInput, match="PORT or HOST:PORT"):
        http_address(GatewayConfig(http_port="unix:topwork.sock"))


def test_names_of_the_loopback_are_the_hosts_of_a_loopback_port() -> None:
    """Other names are refused there (DNS rebinding), unless they are given."""
    found = GatewaySettings.alone(GatewayConfig(http_hosts="Box.example, other"))
    assert found.hosts == ("localhost", "127.0.0.1", "[::1]", "box.example", "other")
    anywhere = GatewaySettings.alone(GatewayConfig(http_port="0.0.0.0:1", insecure=True))
    assert anywhere.hosts is None


def test_gateway_needs_no_client_certificate_beside_an_mtls_port() -> None:
    """With --mtls-address the main ports accept clients without a certificate."""
    mutual = ServeConfig(
        repository=Path("r"),
        http_port="127.0.0.1:1",
        tls_cert=Path("tls_cert"),
        tls_key=Path("tls_key"),
        client_ca=Path("client_ca"),
    )
    beside = replace(mutual, mtls_address="127.0.0.1:2")
    found = [GatewaySettings.beside(config, "", "").tls for config in (mutual, beside)]
    assert found[0] == TlsFiles(
        cert=Path("tls_cert"), key=Path("tls_key"), client_ca=Path("client_ca")
    )
    assert found[1] == TlsFiles(cert=Path("tls_cert"), key=Path("tls_key"))


@pytest.mark.parametrize("secret", ["", "other" * 10, SECRET[:-1], "é" * 40])
def test_forwarded_address_needs_the_secret(secret: str) -> None:
    """The server believes only who knows the secret."""
    claim = [(forwarding.PEER_KEY, "ipv4:6.6.6.6:http")]
    believed = Forwarding(["", SECRET])
    assert believed.peer([*claim, (forwarding.SECRET_KEY, SECRET)], "unix:") == claim[0][1]
    assert believed.peer([*claim, (forwarding.SECRET_KEY, secret)], "unix:") == "unix:"
    assert believed.peer(claim, "unix:") == "unix:"
    assert Forwarding([""]).peer([*claim, (forwarding.SECRET_KEY, "")], "unix:") == "unix:"


@pytest.mark.parametrize("text", ["", "short", "x" * 31, f"{'x' * 20}\n{'x' * 20}", "ü" * 40])
def test_weak_key_file_is_refused(text: str, tmp_path: Path) -> None:
    """A key is one line of at least 32 characters."""
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match="gateway_key"):
        forwarding.read_key(path)


def test_console_can_be_left_out() -> None:
    """Without the console, / is no path."""

    async def first_line(port: int) -> bytes:
        sent = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        return (await exchange(port, sent)).partition(b"\r\n")[0]

    assert serving(first_line) == b"HTTP/1.1 200 OK"
    assert serving(first_line, replace(SETTINGS, console=False)).startswith(b"HTTP/1.1 404")
