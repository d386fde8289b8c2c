"""The command ``backbones``."""

from __future__ import annotations

import click

from topwork_trainer import backbones


@click.command("backbones")
def list_backbones() -> None:
    """List the names that --backbone knows."""
    for name in backbones.names():
        print(name)
