"""Which ports are opened, and how."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import pytest
from support.certificates import Authority

from topwork import Client
from topwork.client.credentials import Credentials
from topwork.config import ServeConfig
from topwork.errors import InvalidInput, Unavailable
from topwork.rpc.listening import certificates, check_ports, metrics_address, open_port
from topwork.wire.loopback import is_loopback


def config(address: str, **settings: object) -> ServeConfig:
    """Return the configuration of a server."""
    return ServeConfig(repository=Path("repository"), address=address, **settings)  # type: ignore[arg-type]  # as the test has them


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "localhost:1",
        "LocalHost:1",
        "[::1]:1",
        "unix:topwork.sock",
        "unix-abstract:topwork",
        "dns:localhost:1",
        "dns:///127.0.0.1:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1",
        "ipv6:[::1]:1",
    ],
)
def test_plaintext_stays_on_this_host(address: str) -> None:
    """On an address that only this host reaches, nothing needs to be said."""
    assert is_loopback(address)
    assert certificates(config(address)) is None


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:1",
        "[::]:1",
        ":1",
        "10.0.0.1:1",
        "example.org:1",
        "localhost.evil:1",
        "dns://10.0.0.1/localhost:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "vsock:2:1",
    ],
)
def test_plaintext_for_other_hosts_must_be_asked_for(address: str) -> None:
    """Any other address is refused without TLS, unless ``insecure`` says that it is meant."""
    with pytest.raises(InvalidInput, match="--insecure") as caught:
        certificates(config(address))
    assert caught.value.reason == "PLAINTEXT"
    assert certificates(config(address, insecure=True)) is None


def test_an_mtls_address_needs_an_authority() -> None:
    """Where clients are to show certificates somebody must have signed them."""
    with pytest.raises(InvalidInput, match="client_ca"):
        certificates(config("127.0.0.1:1", mtls_address="127.0.0.1:2"))


def test_check_ports_refuses_an_address_given_twice() -> None:
    """Health at the server's own port would be a fault of gRPC's once all is loaded."""
    with pytest.raises(InvalidInput, match=r"two of the addresses are 127\.0\.0\.1:1$"):
        check_ports(config("127.0.0.1:1", health_port="127.0.0.1:1"))
    check_ports(config("127.0.0.1:0", health_port="127.0.0.1:0", metrics_port=0))


@pytest.mark.parametrize(
    ("address", "found"), [("[::1]:5", "[::1]:7"), ("unix:/run/a.sock", "127.0.0.1:7")]
)
def test_metrics_address_is_on_the_address_s_host(address: str, found: str) -> None:
    """Beside a server on a unix socket, which has no host, it is on the loopback."""
    assert str(metrics_address(config(address, metrics_port=7))) == found
    assert metrics_address(config(address)) is None


def test_open_port_says_that_a_port_was_taken_meanwhile() -> None:
    """What takes the port after the first look is told in the same words."""

    async def scenario(address: str) -> None:
        with pytest.raises(Unavailable, match="is in use"):
            open_port(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), address, None)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(scenario(f"127.0.0.1:{taken.getsockname()[1]}"))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """A missing file, another's key and an empty authority are told before the port opens."""
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for files, field in (
        ({"tls_cert": tmp_path / "none.pem", "tls_key": one.key}, "tls_cert"),
        ({"tls_cert": one.cert, "tls_key": tmp_path / "none.key"}, "tls_key"),
        ({"tls_cert": one.cert, "tls_key": other.key}, "tls_cert"),
        ({"tls_cert": one.cert, "tls_key": one.key, "client_ca": empty}, "client_ca"),
    ):
        with pytest.raises(InvalidInput, match="cannot be used") as caught:
            certificates(config("0.0.0.0:1", **files))
        assert caught.value.field == field


def test_a_token_never_leaves_this_host_in_plaintext() -> None:
    """A client with a token refuses an address elsewhere without TLS, and never prints it."""
    credentials = Credentials(token="topwork_secret")  # noqa: S106  # it opens nothing
    assert "secret" not in repr(credentials)
    with pytest.raises(InvalidInput, match="plaintext"):
        Client("example.org:1", credentials)
    Client("localhost:1", credentials).close()
