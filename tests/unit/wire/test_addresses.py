"""Addresses of servers: parsed, and tried."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest

from topwork.errors import InvalidInput, Unavailable
from topwork.wire.addresses import HostPort, check_free, parse, why_unreachable


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:50051", HostPort("127.0.0.1", 50051)),
        ("localhost:0", HostPort("localhost", 0)),
        ("[::1]:65535", HostPort("::1", 65535)),
        ("*:1", HostPort("*", 1)),
        ("unix:topwork.sock", None),
        ("unix:///run/topwork.sock", None),
    ],
)
def test_address_that_grpc_takes_is_parsed(address: str, found: HostPort | None) -> None:
    """Each form gives its host and port; a socket's path has none."""
    assert parse(address) == found
    assert found is None or str(found) == address


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("localhost", "has no port: write HOST:PORT, such as localhost:50051"),
        ("[::1]", r"has no port: write HOST:PORT, such as \[::1\]:50051"),
        ("", "has no port"),
        ("50051", "has no host: write HOST:PORT, such as 127.0.0.1:50051"),
        (":50051", "has no host: write HOST:PORT, such as 127.0.0.1:50051"),
        ("::1", r"write \[::1\]:PORT"),
        ("::1:50051", "an IPv6 address, and no other, is in brackets"),
        ("[localhost]:1", "an IPv6 address, and no other, is in brackets"),
        ("a:b:1", "an IPv6 address, and no other, is in brackets"),
        ("localhost:http", "the port 'http'"),
        ("localhost:", "the port ''"),
        ("localhost:65536", "the port '65536'"),
        ("localhost:-1", "the port '-1'"),
        ("localhost:²", "the port '²'"),
        ("http://localhost:50051", "is a URL"),
        ("unix:", "has no path"),
        ("a..b:1", "has the host 'a..b', which is none"),
    ],
)
def test_address_that_is_incomplete_says_what_is_missing(address: str, why: str) -> None:
    """The error has the value and what to write instead."""
    with pytest.raises(InvalidInput, match=why) as caught:
        parse(address)
    assert repr(address) in str(caught.value)


@pytest.fixture
def taken() -> Iterator[HostPort]:
    """Yield an address on which another socket listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield HostPort("127.0.0.1", listening.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "*"])
def test_check_free_names_the_taken_port(taken: HostPort, host: str) -> None:
    """Whatever name the host is given, a port on which somebody listens is in use."""
    with pytest.raises(Unavailable, match=f"^port {taken.port} of .* is in use"):
        check_free(HostPort(host, taken.port))


def test_check_free_ignores_a_connection_that_ended() -> None:
    """A server can start at once where one ended, though the system remembers its connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = listening.getsockname()
        with socket.create_connection(where) as client:
            listening.accept()[0].close()  # who closes first waits
            assert client.recv(1) == b""
    check_free(HostPort(*where))


def test_check_free_says_that_a_host_is_another_one() -> None:
    """An address of another host cannot be listened on."""
    with pytest.raises(Unavailable, match=r"cannot listen on 192\.0\.2\.1:1"):
        check_free(HostPort("192.0.2.1", 1))


def test_a_host_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By server and client, in the resolver's words."""

    def unknown(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Unavailable, match=r"^cannot listen on nobody:1: Name or service not known"):
        check_free(HostPort("nobody", 1))
    assert why_unreachable("nobody:1", tls=False) == "Name or service not known"


@pytest.mark.parametrize(("tls", "why"), [(False, "does it want TLS"), (True, "with TLS that")])
def test_why_unreachable_knows_what_listens(taken: HostPort, tls: bool, why: str) -> None:
    """A port where somebody listens is no server that is missing, but one that speaks otherwise."""
    assert why in why_unreachable(str(taken), tls=tls)


def test_why_unreachable_knows_that_nobody_listens(taken: HostPort) -> None:
    """A port that refuses; of what only gRPC can resolve nothing is known."""
    nobody = HostPort("127.0.0.2", taken.port)
    assert "nothing listens there" in why_unreachable(str(nobody), tls=False)
    assert why_unreachable("dns:///localhost:1", tls=False) == ""
    assert why_unreachable("unix:none.sock", tls=False) == ""
