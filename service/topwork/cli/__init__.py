"""The ``topwork`` command: the only reader of argv and environment."""

from __future__ import annotations

import faulthandler
import sys

import click

import topwork
from topwork.cli import show
from topwork.cli.ask import describe, models
from topwork.cli.change import remove_class, rename_class, retrain
from topwork.cli.classify import classify
from topwork.cli.health import health
from topwork.cli.history import history, pin_revision, rollback
from topwork.cli.keep import fsck, gc
from topwork.cli.operations import operations
from topwork.cli.serve import serve, worker
from topwork.cli.sign import keygen, sign, verify
from topwork.cli.teach import add_class, add_examples
from topwork.cli.token import token
from topwork.errors import TopworkError


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
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; an expected error is one line on standard error and exit status 1."""
    if sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()  # a crash in native code shows where Python was
    try:
        cli()
    except TopworkError as error:
        show.error(error)
        sys.exit(1)
