"""The ``topwork`` command: the only reader of argv and environment."""

from __future__ import annotations

from topwork.runtime import process
from topwork.runtime.interrupts import interruptible


def main() -> None:
    """Run the command line; an expected error is one line on standard error and exit status 1."""
    with interruptible():
        process.configure()
        from topwork.terminal import run

        run(_run, extras="cpu")


def _run() -> None:
    from topwork.cli.commands import cli  # imports for a second; Ctrl-C may end them

    cli()
