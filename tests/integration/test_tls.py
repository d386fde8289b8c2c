"""TLS, mTLS and the plaintext health port of a running server."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import servers, tiny
from support.certificates import Authority
from support.pictures import pictures
from support.servers import Command, Running

from topwork import AsyncClient, CallFailed, Client
from topwork.client.credentials import Credentials

SECONDS = 30.0
"""Timeout of a connection."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return the authority that signs all certificates except the wrong ones."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository that no test changes."""
    return tiny.repository(tmp_path_factory.mktemp("tls") / "repository").root


@pytest.fixture(scope="module")
def server(repository: Path, authority: Authority) -> Iterator[Running]:
    """Yield a server with TLS, a port for clients with certificates, and one for health."""
    with servers.running(
        repository,
        worker=False,
        **servers.tls(authority.issue("server"), authority.ca),
        mtls_address="127.0.0.1:0",
        health_port="127.0.0.1:0",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> Credentials:
    """Return credentials that trust the authority, without a client certificate."""
    return Credentials.from_files(tls_ca=authority.ca)


def model_of(address: str, credentials: Credentials) -> str:
    """Return the model's name from a server; raises CallFailed if the call fails."""
    with Client(address, credentials) as client:
        client.wait_until_ready(SECONDS)
        return client.model("colours").name


def is_refused(address: str, credentials: Credentials) -> bool:
    """Return whether a client's first call is UNAVAILABLE."""
    with Client(address, credentials) as client:
        try:
            client.model("colours")
        except CallFailed as error:
            return bool(error.code == "UNAVAILABLE")
        return False


def served_name(server: Running, authority: Authority) -> str:
    """Return the common name of the server's certificate on a new connection."""
    context = ssl.create_default_context(cafile=authority.ca)
    context.set_alpn_protocols(["h2"])
    host, _, port = server.address.partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        certificate = secure.getpeercert()
    assert certificate is not None
    subject: Any = certificate["subject"]
    return str(dict(pair for (pair,) in subject)["commonName"])


def test_a_list_of_servers_needs_the_name_in_their_certificates(
    server: Running, authority: Authority
) -> None:
    """Without it, gRPC looks for the whole list in a certificate."""
    address = f"ipv4:{server.address},{server.address}"
    assert is_refused(address, Credentials.from_files(tls_ca=authority.ca))
    assert is_refused(
        address, Credentials.from_files(tls_ca=authority.ca, server_name="example.org")
    )
    named = Credentials.from_files(tls_ca=authority.ca, server_name="localhost")
    assert model_of(address, named) == "models/colours"

    async def scenario() -> str:
        async with AsyncClient(address, named) as client:
            return (await client.model("colours")).name

    assert asyncio.run(scenario()) == "models/colours"


def test_a_client_needs_only_the_ca_certificate(server: Running, trusting: Credentials) -> None:
    """A client needs only the CA of the server's certificate."""
    assert model_of(server.address, trusting) == "models/colours"


def test_the_asyncio_client_uses_tls(server: Running, trusting: Credentials) -> None:
    """The asyncio client accepts the same credentials."""

    async def ask() -> int:
        async with AsyncClient(server.address, trusting) as client:
            answer = await client.classify("colours", pictures("blue", 1))
            return len(answer.results)

    assert asyncio.run(ask()) == 1


def test_a_client_with_another_ca_refuses_the_server(server: Running, tmp_path: Path) -> None:
    """A client does not connect to a server whose certificate another authority signed."""
    other = Authority(tmp_path, "other")
    assert is_refused(server.address, Credentials.from_files(tls_ca=other.ca))


def test_plaintext_is_not_answered(server: Running) -> None:
    """A TLS port does not answer plaintext."""
    assert is_refused(server.address, Credentials())


def test_the_mtls_port_requires_a_client_certificate(
    server: Running, authority: Authority, trusting: Credentials, tmp_path: Path
) -> None:
    """``mtls_address`` requires a client certificate from the authority."""
    address = f"127.0.0.1:{server.log_entry('mtls')['port']}"
    known = authority.issue("client")
    unknown = Authority(tmp_path, "other").issue("client")
    assert is_refused(address, trusting)
    for pem, answered in ((known, True), (unknown, False)):
        credentials = Credentials.from_files(
            tls_ca=authority.ca, client_cert=pem.cert, client_key=pem.key
        )
        if answered:
            assert model_of(address, credentials) == "models/colours"
        else:
            assert is_refused(address, credentials)


def test_a_certificate_has_the_role_that_the_access_file_gives_it(
    repository: Path, authority: Authority, tmp_path: Path
) -> None:
    """Certificates of one authority have different roles, by common name or URI."""
    access = tmp_path / "access.toml"
    access.write_text(
        "[principals.reader]\ncertificates = ['URI:spiffe://factory/reader']\nclassify = ['*']\n"
        "[principals.teacher]\ncertificates = ['CN:teacher']\ntrain = ['*']\n"
    )
    outcomes = {}
    with servers.running(
        repository,
        worker=False,
        **servers.tls(authority.issue("server-3"), authority.ca),
        access=str(access),
    ) as started:
        for name, uri in (("reader", "spiffe://factory/reader"), ("teacher", ""), ("other", "")):
            pem = authority.issue(name, uri=uri)
            credentials = Credentials.from_files(
                tls_ca=authority.ca, client_cert=pem.cert, client_key=pem.key
            )
            with Client(started.address, credentials) as client:
                try:
                    client.retrain("colours")
                    outcomes[name] = "OK"
                except CallFailed as error:
                    outcomes[name] = error.reason
    assert outcomes == {"reader": "ROLE_MISSING", "teacher": "OK", "other": "CREDENTIALS_UNKNOWN"}


def test_client_ca_without_mtls_address_requires_client_certificates(
    repository: Path, authority: Authority, trusting: Credentials
) -> None:
    """Without ``mtls_address`` the only port requires a client certificate."""
    known = authority.issue("client-2")
    with servers.running(
        repository, worker=False, **servers.tls(authority.issue("server-2"), authority.ca)
    ) as started:
        assert is_refused(started.address, trusting)
        credentials = Credentials.from_files(
            tls_ca=authority.ca, client_cert=known.cert, client_key=known.key
        )
        assert model_of(started.address, credentials) == "models/colours"


def test_a_certificate_is_replaced_without_a_restart(repository: Path, tmp_path: Path) -> None:
    """New connections get the new certificate, once its file and its key's file match."""
    authority = Authority(tmp_path)
    with (
        servers.running(
            repository, worker=False, **servers.tls(authority.issue("first", file="served"))
        ) as started,
        Client(started.address, Credentials.from_files(tls_ca=authority.ca)) as client,
    ):
        client.model("colours")
        assert served_name(started, authority) == "first"
        second = authority.issue("second")
        shutil.copy(second.cert, tmp_path / "served.pem")
        assert served_name(started, authority) == "first"
        assert "with its key" in started.log_entry("certificates stay as they were")["error"]
        shutil.copy(second.key, tmp_path / "served.key")
        assert served_name(started, authority) == "second"
        client.model("colours")  # the old connection still works


def test_health_is_answered_in_plaintext_on_its_own_port(server: Running) -> None:
    """The plaintext health port answers health checks and nothing else."""
    address = f"127.0.0.1:{server.log_entry('health port')['port']}"
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with Client(address) as client:
        assert servers.failure(lambda: client.model("colours")).code == "UNIMPLEMENTED"


def test_commands_use_tls_by_options_and_environment(
    server: Running,
    authority: Authority,
    topwork: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commands take TLS files from options and from environment variables."""
    code, out, _ = topwork("models", "--tls-ca", authority.ca, "--json", address=server.address)
    assert (code, '"colours"' in out) == (0, True)
    client = authority.issue("client-3")
    monkeypatch.setenv("TOPWORK_TLS_CA", str(authority.ca))
    monkeypatch.setenv("TOPWORK_CLIENT_CERT", str(client.cert))
    monkeypatch.setenv("TOPWORK_CLIENT_KEY", str(client.key))
    address = f"127.0.0.1:{server.log_entry('mtls')['port']}"
    code, out, _ = topwork("describe", "colours", address=address)
    assert (code, "colours" in out) == (0, True)


def test_a_key_without_its_certificate_is_an_error(authority: Authority, topwork: Command) -> None:
    """A client key without its certificate is an error before the call."""
    code, _, errors = topwork("models", "--client-key", authority.issue("client-4").key)
    assert code == 1
    assert "client_cert and client_key go together" in errors
