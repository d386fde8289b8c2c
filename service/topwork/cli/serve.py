"""``topwork serve`` and ``topwork worker``."""

from __future__ import annotations

import os
import signal

import click

from topwork.cli.settings import settings_options
from topwork.config import ServeConfig, WorkerConfig, shown


@click.command()
@settings_options(ServeConfig)
@click.option(
    "--print-config", is_flag=True, help="Print the settings as JSON, without secrets, and exit."
)
def serve(config: ServeConfig, print_config: bool) -> None:
    """Serve all models of a repository over gRPC, until SIGTERM."""
    _begin(config, quiet=print_config)
    config.signing.read(publishes=config.worker)  # a wrong key ends the command here
    if print_config:
        print(shown(config))
        return
    # Imported here: the other commands need neither ONNX Runtime nor the database.
    from topwork.rpc import server

    server.run(config)


@click.command()
@settings_options(WorkerConfig)
def worker(config: WorkerConfig) -> None:
    """Make the changes that servers were asked for, until SIGTERM.

    `topwork serve` does this too, unless it is told --no-worker: this is for hosts of their own.
    """
    _begin(config)
    from topwork.changes import worker as workers

    config.signing.read(publishes=True)  # a wrong key ends the command here
    workers.run_alone(config)


def _begin(config: WorkerConfig, *, quiet: bool = False) -> None:
    """End at once on SIGTERM, until there is more to end; let all that is written be log lines.

    To process 1, which a container's command is, a signal that it does not handle is nothing.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if not quiet:
        from topwork.runtime import logs

        logs.configure(config.log_format)
        logs.capture(config.log_format)
