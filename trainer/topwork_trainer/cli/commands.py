"""The group of all ``topwork-train`` commands."""

from __future__ import annotations

import click

import topwork
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
