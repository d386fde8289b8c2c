"""``topwork report``: the report of a revision, from a server."""

from __future__ import annotations

from pathlib import Path

import click

from topwork.cli.options import ServerOptions, check_page, connected, server_option, write_page


@click.command()
@server_option
@click.option(
    "--revision", default=0, type=click.IntRange(min=0), help="Revision; 0: the serving one."
)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write."
)
@click.argument("model")
def report(server: ServerOptions, revision: int, out: Path, model: str) -> None:
    """Write the report of MODEL's revision, one HTML page, to a file."""
    check_page(out, field="out")
    with connected(server) as client:
        number = revision or client.model(model).serving_revision.revision
        page = client.report(model, number)
    write_page(out, page.decode(), field="out")
    click.echo(f"report of revision {number} of {model} in {out}", err=True)
