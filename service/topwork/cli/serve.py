"""``topwork serve`` and ``topwork worker``."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli.addresses import Address, check_url
from topwork.cli.signing_options import signing_options
from topwork.limits import DEFAULT_LIMITS

if TYPE_CHECKING:
    from topwork.config import TlsFiles
    from topwork.runtime import logs

repository = click.option(
    "--repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that holds the bundles; made if it is missing.",
)
cores = click.option(
    "--cores", type=click.IntRange(min=1), help="Default: what the process may use."
)
database = click.option(
    "--database",
    default="",
    callback=check_url,
    help="URL of the database of operations, such as postgresql://user@host/topwork; "
    "default: a SQLite file in the repository, for one host.",
)
executor = click.option(
    "--executor",
    help="The worker's name, the same after every restart, another on each host. "
    "Default: worker; with --database the host's name.",
)
log_format = click.option("--log-format", default="text", type=click.Choice(["text", "json"]))
pem = click.Path(dir_okay=False, path_type=Path)


@click.command()
@repository
@click.option(
    "--address",
    default="127.0.0.1:50051",
    type=Address(),
    help="HOST:PORT, [IPv6]:PORT or unix:PATH; port 0 takes a free one.",
)
@click.option("--tls-cert", type=pem, help="PEM of the server's certificate. Default: plaintext.")
@click.option("--tls-key", type=pem, help="PEM of its private key.")
@click.option(
    "--client-ca", type=pem, help="PEM of who signs clients' certificates, which they then need."
)
@click.option(
    "--mtls-address",
    default="",
    type=Address(optional=True),
    help="HOST:PORT for clients with a certificate, which those at --address then do not need.",
)
@click.option(
    "--insecure", is_flag=True, help="Let other hosts speak plaintext, where there is no TLS."
)
@click.option(
    "--access",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file: who may call what. Default: everybody everything.",
)
@click.option(
    "--health-port",
    default="",
    type=Address(optional=True, lone_port=True),
    help="PORT of the loopback, or HOST:PORT, for health alone, in plaintext. Default: nowhere.",
)
@click.option(
    "--reflection/--no-reflection",
    default=True,
    help="Whether tools such as grpcurl may ask for the contract.",
)
@click.option(
    "--channelz/--no-channelz",
    default=False,
    help="Whether gRPC tells admins of its connections.",
)
@click.option(
    "--provider", default="auto", type=click.Choice(["auto", "cpu", "cuda", "openvino", "tensorrt"])
)
@cores
@click.option(
    "--queue-limit",
    default=512,
    type=click.IntRange(min=1),
    help="Images in the server at a time; more are refused at once.",
)
@click.option(
    "--head-megabytes",
    default=1000,
    type=click.IntRange(min=1),
    help="What heads in memory may weigh together.",
)
@click.option(
    "--max-seconds",
    default=60.0,
    type=click.FloatRange(min=0, min_open=True),
    help="What a Classify call may take, whatever its deadline.",
)
@click.option(
    "--connection-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="After which a client connects anew, perhaps to another server. Default: never.",
)
@click.option(
    "--grace-seconds",
    default=10.0,
    type=click.FloatRange(min=0),
    help="How long calls in flight may go on after SIGTERM.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Answer Prometheus' GET /metrics there. Default: nowhere.",
)
@click.option(
    "--model-quota-megabytes",
    default=DEFAULT_LIMITS.max_model_bytes // 10**6,
    type=click.IntRange(min=1),
    help="What a model's revisions, exemplars and uploaded images may take on the disk.",
)
@database
@executor
@click.option(
    "--worker/--no-worker",
    default=True,
    help="Whether to make changes beside serving; else a `topwork worker` must.",
)
@signing_options
@log_format
@click.option(
    "--otlp-endpoint",
    default="",
    callback=check_url,
    help="Send spans to OpenTelemetry's collector there, such as http://127.0.0.1:4318.",
)
@click.option(
    "--print-config", is_flag=True, help="Print what is in effect as JSON, secrets left out; end."
)
def serve(
    repository: Path,
    address: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    mtls_address: str,
    insecure: bool,
    access: Path | None,
    health_port: str,
    reflection: bool,
    channelz: bool,
    provider: str,
    cores: int | None,
    queue_limit: int,
    head_megabytes: int,
    max_seconds: float,
    connection_seconds: float | None,
    grace_seconds: float,
    metrics_port: int | None,
    model_quota_megabytes: int,
    database: str,
    executor: str | None,
    worker: bool,
    signing: SigningFiles,
    log_format: logs.Format,
    otlp_endpoint: str,
    print_config: bool,
) -> None:
    """Serve all models of a repository over gRPC, until SIGTERM."""
    _begin(log_format, quiet=print_config)
    # Imported here: the other commands need neither ONNX Runtime nor the database.
    from typing import cast

    from topwork.config import ServeConfig, shown
    from topwork.rpc import server
    from topwork.runtime.backend import Provider
    from topwork.runtime.cores import available_cores

    signing.read(publishes=worker)  # a wrong key ends the command before anything starts
    config = ServeConfig(
        repository=repository,
        address=address,
        tls=_tls(tls_cert, tls_key, client_ca),
        mtls_address=mtls_address,
        insecure=insecure,
        access=access,
        health_address=health_port,
        reflection=reflection,
        channelz=channelz,
        provider=cast("Provider", provider),
        cores=cores or available_cores(),
        queue_limit=queue_limit,
        head_megabytes=head_megabytes,
        most_seconds=max_seconds,
        connection_seconds=connection_seconds,
        grace_seconds=grace_seconds,
        metrics_port=metrics_port,
        database=database,
        worker=worker,
        executor=executor or _executor(database),
        signing=signing,
        log_format=log_format,
        otlp_endpoint=otlp_endpoint,
        limits=replace(DEFAULT_LIMITS, max_model_bytes=model_quota_megabytes * 10**6),
    )
    if print_config:
        print(shown(config))
        return
    server.run(config)


@click.command()
@repository
@database
@executor
@cores
@signing_options
@log_format
def worker(
    repository: Path,
    database: str,
    executor: str | None,
    cores: int | None,
    signing: SigningFiles,
    log_format: logs.Format,
) -> None:
    """Make the changes that servers were asked for, until SIGTERM.

    `topwork serve` does this too, unless it is told --no-worker: this is for hosts of their own.
    """
    _begin(log_format)
    from topwork.changes import worker as workers
    from topwork.changes.database import database_url, prepare
    from topwork.runtime.cores import available_cores

    signing.read(publishes=True)  # a wrong key ends the command before anything starts
    url = database or database_url(repository)
    prepare(url)
    workers.run_alone(
        workers.WorkerConfig(
            root=repository,
            url=url,
            executor=executor or _executor(database),
            cores=cores or available_cores(),
            limits=DEFAULT_LIMITS,
            signing=signing,
            log_format=log_format,
        )
    )


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """Return the files of TLS, None for plaintext."""
    from topwork.config import TlsFiles

    if cert is not None and key is not None:
        return TlsFiles(cert=cert, key=key, client_ca=client_ca)
    if (cert, key, client_ca) != (None, None, None):
        raise click.UsageError("--tls-cert and --tls-key go together, and --client-ca with them")
    return None


def _executor(database: str) -> str:
    """Return a name that this host's worker has after a restart, and no other host's."""
    return socket.gethostname() if database else "worker"


def _begin(log_format: logs.Format, *, quiet: bool = False) -> None:
    """End at once on SIGTERM, until there is more to end; let all that is written be log lines.

    To process 1, which a container's command is, a signal that it does not handle is nothing.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if not quiet:
        from topwork.runtime import logs

        logs.configure(log_format)
        logs.capture(log_format)
