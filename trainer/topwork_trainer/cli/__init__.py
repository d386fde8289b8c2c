"""The ``topwork-train`` command: the only reader of argv and environment in the trainer."""

from __future__ import annotations

import faulthandler
import sys

import click
from rich.console import Console
from rich.markup import escape

import topwork
from topwork.errors import TopworkError
from topwork_trainer.cli.audit import audit
from topwork_trainer.cli.backbones import describe, list_backbones
from topwork_trainer.cli.demo import demo, demo_data, fetch
from topwork_trainer.cli.fit import fit
from topwork_trainer.cli.rank import rank


@click.group(context_settings={"auto_envvar_prefix": "TOPWORK_TRAIN", "show_default": True})
@click.version_option(topwork.__version__)
def cli() -> None:
    """Train image classifiers on a frozen, pre-trained backbone."""


for command in (fit, rank, audit, describe, list_backbones, demo_data, fetch, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command line; an expected error is one line on standard error and exit status 1."""
    if sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()  # a crash in native code shows where Python was
    try:
        cli()
    except TopworkError as error:
        Console(stderr=True).print(
            "[red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True
        )
        sys.exit(1)
