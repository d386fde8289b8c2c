"""Ports of a server and their credentials."""

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
def test_plaintext_is_allowed_on_loopback(address: str) -> None:
    """A loopback address needs neither TLS nor ``insecure``."""
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
def test_plaintext_for_other_hosts_needs_insecure(address: str) -> None:
    """Any other address is refused without TLS and without ``insecure``."""
    with pytest.raises(InvalidInput, match="--insecure") as caught:
        certificates(config(address))
    assert caught.value.reason == "PLAINTEXT"
    assert certificates(config(address, insecure=True)) is None


def test_mtls_address_needs_a_client_ca() -> None:
    """Without a client CA no client certificate could be verified."""
    with pytest.raises(InvalidInput, match="client_ca"):
        certificates(config("127.0.0.1:1", mtls_address="127.0.0.1:2"))


def test_check_ports_refuses_duplicate_address() -> None:
    """The health port must differ from the server's port.

    GRPC would fail only after loading the models.
    """
    with pytest.raises(InvalidInput, match=r"two of the addresses are 127\.0\.0\.1:1$"):
        check_ports(config("127.0.0.1:1", health_port="127.0.0.1:1"))
    check_ports(config("127.0.0.1:0", health_port="127.0.0.1:0", metrics_port=0))


@pytest.mark.parametrize(
    ("address", "found"), [("[::1]:5", "[::1]:7"), ("unix:/run/a.sock", "127.0.0.1:7")]
)
def test_metrics_port_is_on_the_host_of_the_address(address: str, found: str) -> None:
    """With a unix socket, which has no host, it is on the loopback."""
    assert str(metrics_address(config(address, metrics_port=7))) == found
    assert metrics_address(config(address)) is None


def test_open_port_reports_a_port_in_use() -> None:
    """A port that another process took after the first check is reported with the same text."""

    async def scenario(address: str) -> None:
        with pytest.raises(Unavailable, match="is in use"):
            open_port(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), address, None)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(scenario(f"127.0.0.1:{taken.getsockname()[1]}"))


def test_unusable_certificate_files_are_named(tmp_path: Path) -> None:
    """A missing file, a wrong key and an empty CA are refused before the port opens."""
    authority = Authority(tmp_path)
    own, other = authority.issue("one"), authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for files, field in (
        ({"tls_cert": tmp_path / "none.pem", "tls_key": own.key}, "tls_cert"),
        ({"tls_cert": own.cert, "tls_key": tmp_path / "none.key"}, "tls_key"),
        ({"tls_cert": own.cert, "tls_key": other.key}, "tls_cert"),
        ({"tls_cert": own.cert, "tls_key": own.key, "client_ca": empty}, "client_ca"),
    ):
        with pytest.raises(InvalidInput, match="cannot be used") as caught:
            certificates(config("0.0.0.0:1", **files))
        assert caught.value.field == field


def test_client_refuses_token_without_tls() -> None:
    """A client with a token refuses a remote address without TLS, and never prints the token."""
    credentials = Credentials(token="topwork_secret")  # noqa: S106  # it opens nothing
    assert "secret" not in repr(credentials)
    with pytest.raises(InvalidInput, match="plaintext"):
        Client("example.org:1", credentials)
    Client("localhost:1", credentials).close()
