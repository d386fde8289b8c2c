"""TLS, certificates of clients, and health beside them, on a running server."""

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
"""Within which a connection is there, or never."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return who signs all certificates but the wrong ones."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository that nobody changes."""
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
    """Return credentials that trust the authority, and show nothing."""
    return Credentials.from_files(tls_ca=authority.ca)


def model_of(address: str, credentials: Credentials) -> str:
    """Return what a client is told of the model; raises CallFailed if it is told nothing."""
    with Client(address, credentials) as client:
        client.wait_until_ready(SECONDS)
        return client.model("colours").name


def refused(address: str, credentials: Credentials) -> bool:
    """Return whether a client gets no connection; its first try says so."""
    with Client(address, credentials) as client:
        try:
            client.model("colours")
        except CallFailed as error:
            return bool(error.code == "UNAVAILABLE")
        return False


def shown(server: Running, authority: Authority) -> str:
    """Return the name in the certificate that the server shows a new connection."""
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


def test_who_trusts_the_authority_is_answered(server: Running, trusting: Credentials) -> None:
    """A client that knows who signed the server's certificate needs nothing else."""
    assert model_of(server.address, trusting) == "models/colours"


def test_the_client_for_asyncio_speaks_tls(server: Running, trusting: Credentials) -> None:
    """The client for asyncio takes the same credentials."""

    async def ask() -> int:
        async with AsyncClient(server.address, trusting) as client:
            answer = await client.classify("colours", pictures("blue", 1))
            return len(answer.results)

    assert asyncio.run(ask()) == 1


def test_who_trusts_another_authority_refuses_the_server(server: Running, tmp_path: Path) -> None:
    """A certificate from somebody else's authority is none: nothing is sent to such a server."""
    other = Authority(tmp_path, "other")
    assert refused(server.address, Credentials.from_files(tls_ca=other.ca))


def test_plaintext_is_not_answered(server: Running) -> None:
    """A port with TLS speaks nothing else."""
    assert refused(server.address, Credentials())


def test_the_other_port_takes_clients_with_a_certificate_only(
    server: Running, authority: Authority, trusting: Credentials, tmp_path: Path
) -> None:
    """At ``mtls_address`` a certificate from the authority is needed; another's does not do."""
    address = f"127.0.0.1:{server.fact('mtls')['port']}"
    known = authority.issue("client")
    stranger = Authority(tmp_path, "other").issue("client")
    assert refused(address, trusting)
    for pem, answered in ((known, True), (stranger, False)):
        credentials = Credentials.from_files(
            tls_ca=authority.ca, client_cert=pem.cert, client_key=pem.key
        )
        if answered:
            assert model_of(address, credentials) == "models/colours"
        else:
            assert refused(address, credentials)


def test_a_certificate_has_the_role_that_the_access_file_gives_it(
    repository: Path, authority: Authority, tmp_path: Path
) -> None:
    """Its bearer is told apart from others of the same authority, by name and by URI."""
    access = tmp_path / "access.toml"
    access.write_text(
        "[principals.reader]\ncertificates = ['URI:spiffe://factory/reader']\nclassify = ['*']\n"
        "[principals.teacher]\ncertificates = ['CN:teacher']\ntrain = ['*']\n"
    )
    said = {}
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
                    said[name] = "OK"
                except CallFailed as error:
                    said[name] = error.reason
    assert said == {"reader": "ROLE_MISSING", "teacher": "OK", "other": "CREDENTIALS_UNKNOWN"}


def test_with_a_client_ca_alone_every_client_needs_a_certificate(
    repository: Path, authority: Authority, trusting: Credentials
) -> None:
    """Without ``mtls_address`` the one port asks everybody for a certificate."""
    known = authority.issue("client-2")
    with servers.running(
        repository, worker=False, **servers.tls(authority.issue("server-2"), authority.ca)
    ) as started:
        assert refused(started.address, trusting)
        credentials = Credentials.from_files(
            tls_ca=authority.ca, client_cert=known.cert, client_key=known.key
        )
        assert model_of(started.address, credentials) == "models/colours"


def test_a_certificate_is_replaced_without_a_restart(repository: Path, tmp_path: Path) -> None:
    """New connections see what is in the files; a certificate without its key changes nothing."""
    authority = Authority(tmp_path)
    with (
        servers.running(
            repository, worker=False, **servers.tls(authority.issue("first", file="served"))
        ) as started,
        Client(started.address, Credentials.from_files(tls_ca=authority.ca)) as client,
    ):
        client.model("colours")
        assert shown(started, authority) == "first"
        second = authority.issue("second")
        shutil.copy(second.cert, tmp_path / "served.pem")
        assert shown(started, authority) == "first"
        assert "with its key" in started.fact("certificates stay as they were")["error"]
        shutil.copy(second.key, tmp_path / "served.key")
        assert shown(started, authority) == "second"
        client.model("colours")  # the old connection goes on


def test_health_is_answered_in_plaintext_on_its_own_port(server: Running) -> None:
    """A probe that speaks no TLS asks for health there, and for nothing else."""
    address = f"127.0.0.1:{server.fact('health port')['port']}"
    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with Client(address) as client:
        assert servers.failure(lambda: client.model("colours")).code == "UNIMPLEMENTED"


def test_the_command_line_speaks_tls(
    server: Running,
    authority: Authority,
    topwork: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options and their variables for all commands lead to the same server."""
    code, out, _ = topwork("models", "--tls-ca", authority.ca, "--json", address=server.address)
    assert (code, '"colours"' in out) == (0, True)
    client = authority.issue("client-3")
    monkeypatch.setenv("TOPWORK_TLS_CA", str(authority.ca))
    monkeypatch.setenv("TOPWORK_CLIENT_CERT", str(client.cert))
    monkeypatch.setenv("TOPWORK_CLIENT_KEY", str(client.key))
    address = f"127.0.0.1:{server.fact('mtls')['port']}"
    code, out, _ = topwork("describe", "colours", address=address)
    assert (code, "colours" in out) == (0, True)


def test_a_key_without_its_certificate_is_an_error(authority: Authority, topwork: Command) -> None:
    """Half of a pair is told before anything is sent."""
    code, _, errors = topwork("models", "--client-key", authority.issue("client-4").key)
    assert code == 1
    assert "client_cert and client_key go together" in errors
