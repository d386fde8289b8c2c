"""Server addresses: the parser, and the checks with a socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NoReturn

import pytest

from topwork.errors import InvalidInput, Unavailable
from topwork.wire.addresses import HostPort, check_free, parse, why_unreachable


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:50051", HostPort("127.0.0.1", 50051)),
        ("localhost:0", HostPort("localhost", 0)),
        ("[::1]:65535", HostPort("::1", 65535)),
        ("*:1", HostPort("*", 1)),
        ("unix:topwork.sock", None),
        ("unix:///run/topwork.sock", None),
    ],
)
def test_parse_reads_every_form_that_grpc_takes(address: str, parsed: HostPort | None) -> None:
    """Each form has its host and port; a Unix domain socket has neither."""
    assert parse(address) == parsed
    assert parsed is None or str(parsed) == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost", "has no port: write HOST:PORT, such as localhost:50051"),
        ("[::1]", r"has no port: write HOST:PORT, such as \[::1\]:50051"),
        ("", "has no port"),
        ("50051", "has no host: write HOST:PORT, such as 127.0.0.1:50051"),
        (":50051", "has no host: write HOST:PORT, such as 127.0.0.1:50051"),
        ("::1", r"write \[::1\]:PORT"),
        ("::1:50051", "put an IPv6 address, and nothing else, in brackets"),
        ("[localhost]:1", "put an IPv6 address, and nothing else, in brackets"),
        ("a:b:1", "put an IPv6 address, and nothing else, in brackets"),
        ("localhost:http", "the port 'http'"),
        ("localhost:", "the port ''"),
        ("localhost:65536", "the port '65536'"),
        ("localhost:-1", "the port '-1'"),
        ("localhost:²", "the port '²'"),
        ("http://localhost:50051", "is a URL"),
        ("unix:", "has no path"),
        ("a..b:1", "has the host 'a..b', which is not a host name"),
    ],
)
def test_parse_of_invalid_address_raises_with_a_correction(address: str, message: str) -> None:
    """The error has the value and the form to write instead."""
    with pytest.raises(InvalidInput, match=message) as caught:
        parse(address)
    assert repr(address) in str(caught.value)


@pytest.fixture
def used() -> Iterator[HostPort]:
    """Yield an address with a listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield HostPort("127.0.0.1", listening.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "*"])
def test_check_free_names_the_used_port(used: HostPort, host: str) -> None:
    """A port with a listening socket is in use under every name of the host."""
    with pytest.raises(Unavailable, match=f"^port {used.port} of .* is in use"):
        check_free(HostPort(host, used.port))


def test_check_free_ignores_a_connection_that_ended() -> None:
    """A server can listen on a port whose last connections are in TIME_WAIT."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = listening.getsockname()
        with socket.create_connection(where) as client:
            listening.accept()[0].close()  # the side that closes first is in TIME_WAIT
            assert client.recv(1) == b""
    check_free(HostPort(*where))


def test_check_free_refuses_an_address_of_another_host() -> None:
    """An address of another host cannot be listened on."""
    with pytest.raises(Unavailable, match=r"cannot listen on 192\.0\.2\.1:1"):
        check_free(HostPort("192.0.2.1", 1))


def test_unresolvable_host_has_the_error_of_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and client both report the resolver's message."""

    def unknown(*_: object, **__: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(Unavailable, match=r"^cannot listen on nobody:1: Name or service not known"):
        check_free(HostPort("nobody", 1))
    assert why_unreachable("nobody:1", tls=False) == "Name or service not known"


@pytest.mark.parametrize(("tls", "reason"), [(False, "does it want TLS"), (True, "with TLS that")])
def test_why_unreachable_of_another_protocol_suggests_tls(
    used: HostPort, tls: bool, reason: str
) -> None:
    """A listener that is not reached by gRPC speaks another protocol, or TLS differs."""
    assert reason in why_unreachable(str(used), tls=tls)


def test_why_unreachable_of_a_refused_connection(used: HostPort) -> None:
    """A refused connection is reported; names that only gRPC resolves have no reason."""
    unused = HostPort("127.0.0.2", used.port)
    assert "nothing listens there" in why_unreachable(str(unused), tls=False)
    assert why_unreachable("dns:///localhost:1", tls=False) == ""
    assert why_unreachable("unix:none.sock", tls=False) == ""
