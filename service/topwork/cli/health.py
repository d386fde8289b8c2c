"""``topwork health``: for supervisors that start a command rather than speak gRPC themselves."""

from __future__ import annotations

import sys

import click

from topwork.cli.options import ServerAt, server_option
from topwork.client import probe


@click.command()
@server_option
@click.option("--service", default="", help="Full name of a service. Default: the whole process.")
@click.option(
    "--timeout",
    default=3.0,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until no answer is an answer.",
)
def health(server: ServerAt, service: str, timeout: float) -> None:
    """Ask a server whether it serves. Exit status 0 only if it says SERVING."""
    status = probe.status(server.address, service, timeout, server.credentials)
    print(status)
    sys.exit(0 if status == probe.SERVING else 1)
