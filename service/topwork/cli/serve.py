"""``topwork serve``."""

from __future__ import annotations

from pathlib import Path

import click

from topwork.bundle.limits import DEFAULT_LIMITS


@click.command()
@click.option(
    "--repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that holds the bundles; made if it is missing.",
)
@click.option("--address", default="127.0.0.1:50051", help="HOST:PORT; port 0 takes a free one.")
@click.option(
    "--provider", default="auto", type=click.Choice(["auto", "cpu", "cuda", "openvino", "tensorrt"])
)
@click.option("--cores", type=click.IntRange(min=1), help="Default: what the process may use.")
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
@click.option("--log-format", default="text", type=click.Choice(["text", "json"]))
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
    log_format: str,
) -> None:
    """Serve all models of a repository over gRPC, until SIGTERM."""
    # Imported here: the other commands need neither ONNX Runtime nor the database.
    from typing import cast

    import uvloop

    from topwork import logs
    from topwork.config import ServeConfig
    from topwork.engine.backend import Provider
    from topwork.engine.cores import available_cores
    from topwork.rpc import server

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
        log_format=cast("logs.Format", log_format),
        limits=DEFAULT_LIMITS,
    )
    logs.configure(config.log_format)
    uvloop.run(server.serve(config))
