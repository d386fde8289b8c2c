"""The group of all ``topwork`` commands."""

from __future__ import annotations

import click

import topwork
from topwork.cli.ask import describe, models
from topwork.cli.change import remove_class, rename_class, retrain
from topwork.cli.classify import classify
from topwork.cli.health import health
from topwork.cli.history import history, pin_revision, rollback
from topwork.cli.keep import fsck, gc
from topwork.cli.operations import operations
from topwork.cli.proto import proto
from topwork.cli.serve import serve, worker
from topwork.cli.sign import keygen, sign, verify
from topwork.cli.teach import add_class, add_examples
from topwork.cli.token import token


@click.group(context_settings={"auto_envvar_prefix": "TOPWORK", "show_default": True})
@click.version_option(topwork.__version__)
def cli() -> None:
    """Serve image classifiers, ask them, and teach them new classes while they serve."""


COMMANDS: tuple[click.Command, ...] = (
    serve,
    worker,
    classify,
    add_class,
    add_examples,
    remove_class,
    rename_class,
    retrain,
    rollback,
    pin_revision,
    operations,
    health,
    models,
    describe,
    history,
    gc,
    fsck,
    keygen,
    sign,
    verify,
    token,
    proto,
)
for command in COMMANDS:
    cli.add_command(command)
