"""``topwork serve`` and ``topwork worker``."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import click

from topwork.bundle.limits import DEFAULT_LIMITS
from topwork.bundle.signatures import SigningFiles
from topwork.cli.options import signing_options

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
    help="URL of the database of operations, such as postgresql://user@host/topwork; "
    "default: a SQLite file in the repository, for one host.",
)
executor = click.option(
    "--executor",
    help="The worker's name, the same after every restart, another on each host. "
    "Default: worker; with --database the host's name.",
)
log_format = click.option("--log-format", default="text", type=click.Choice(["text", "json"]))


@click.command()
@repository
@click.option("--address", default="127.0.0.1:50051", help="HOST:PORT; port 0 takes a free one.")
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
def serve(
    repository: Path,
    address: str,
    provider: str,
    cores: int | None,
    queue_limit: int,
    head_megabytes: int,
    max_seconds: float,
    grace_seconds: float,
    metrics_port: int | None,
    model_quota_megabytes: int,
    database: str,
    executor: str | None,
    worker: bool,
    signing: SigningFiles,
    log_format: str,
) -> None:
    """Serve all models of a repository over gRPC, until SIGTERM."""
    _end_on_sigterm()
    # Imported here: the other commands need neither ONNX Runtime nor the database.
    from typing import cast

    import uvloop

    from topwork import logs
    from topwork.config import ServeConfig
    from topwork.engine.backend import Provider
    from topwork.engine.cores import available_cores
    from topwork.rpc import server

    signing.read(publishes=worker)  # a wrong key ends the command before anything starts
    config = ServeConfig(
        repository=repository,
        address=address,
        provider=cast("Provider", provider),
        cores=cores or available_cores(),
        queue_limit=queue_limit,
        head_megabytes=head_megabytes,
        most_seconds=max_seconds,
        grace_seconds=grace_seconds,
        metrics_port=metrics_port,
        database=database,
        worker=worker,
        executor=executor or _executor(database),
        signing=signing,
        log_format=cast("logs.Format", log_format),
        limits=replace(DEFAULT_LIMITS, max_model_bytes=model_quota_megabytes * 10**6),
    )
    logs.configure(config.log_format)
    uvloop.run(server.serve(config))


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
    log_format: str,
) -> None:
    """Make the changes that servers were asked for, until SIGTERM.

    `topwork serve` does this too, unless it is told --no-worker: this is for hosts of their own.
    """
    _end_on_sigterm()
    from typing import cast

    from topwork import logs
    from topwork.engine import worker as workers
    from topwork.engine.cores import available_cores
    from topwork.engine.operations import database_url, prepare

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
            log_format=cast("logs.Format", log_format),
        )
    )


def _executor(database: str) -> str:
    """Return a name that this host's worker has after a restart, and no other host's."""
    return socket.gethostname() if database else "worker"


def _end_on_sigterm() -> None:
    """End at once, until there is more to end.

    To process 1, which a container's command is, a signal that it does not handle is nothing.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
