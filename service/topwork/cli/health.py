"""``topwork health``: a health check for supervisors that do not speak gRPC."""

from __future__ import annotations

import sys

import click

from topwork.cli.options import ServerOptions, server_option
from topwork.client import probe


@click.command()
@server_option
@click.option(
    "--service", default="", show_default=False, help="Full name of a gRPC service. Default: all."
)
@click.option(
    "--timeout",
    default=3.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for an answer.",
)
def health(server: ServerOptions, service: str, timeout: float) -> None:
    """Check the health of a server. Exit status 0 only if it answers SERVING."""
    status = probe.status(server.address, service, timeout, server.credentials)
    print(status)
    sys.exit(0 if status == probe.SERVING else 1)
