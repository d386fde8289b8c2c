"""``topwork serve``, ``topwork worker`` and ``topwork gateway``."""

from __future__ import annotations

import os
import signal

import click

from topwork.cli.settings import settings_options
from topwork.config import GatewayConfig, ServeConfig, WorkerConfig, to_json


@click.command()
@settings_options(ServeConfig)
@click.option(
    "--print-config", is_flag=True, help="Print the settings as JSON, without secrets, and exit."
)
def serve(config: ServeConfig, print_config: bool) -> None:
    """Serve all models of a repository over gRPC until SIGTERM."""
    _start(config, quiet=print_config)
    config.signing.read(publishes=config.worker)  # fails early if a key is wrong
    if print_config:
        print(to_json(config))
        return
    # Imported here: the other commands need neither ONNX Runtime nor the database.
    from topwork.rpc import server

    server.run(config)


@click.command()
@settings_options(WorkerConfig)
def worker(config: WorkerConfig) -> None:
    """Carry out queued changes of models until SIGTERM.

    `topwork serve` does the same unless it has --no-worker. Use this command to run the worker on
    another host.
    """
    _start(config)
    from topwork.changes import worker as workers

    config.signing.read(publishes=True)  # fails early if a key is wrong
    workers.run_alone(config)


@click.command()
@settings_options(GatewayConfig)
def gateway(config: GatewayConfig) -> None:
    """Serve the HTTP/JSON API of a gRPC server until SIGTERM.

    `topwork serve --http-port` does the same. Use this command to run the gateway on another host.
    """
    _start(config)
    from topwork.gateway import process

    process.run_alone(config)


def _start(config: WorkerConfig | GatewayConfig, *, quiet: bool = False) -> None:
    """Exit at once on SIGTERM during start-up; turn all output into log lines unless ``quiet``.

    Linux ignores SIGTERM for process 1, a container's command, unless the process handles it.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if not quiet:
        from multiprocessing import resource_tracker

        from topwork.runtime import logs

        # Before the capture, whose end would wait for this process.
        resource_tracker.ensure_running()
        logs.configure(config.log_format)
        logs.capture(config.log_format)
