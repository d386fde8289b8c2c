"""Command line ``topwork-train``: the trainer's only reader of argv and the environment."""

from __future__ import annotations

from topwork.runtime import process
from topwork.runtime.interrupts import interruptible


def main() -> None:
    """Run the command line. An expected error is one line on standard error and exit status 1."""
    with interruptible():
        process.configure()
        from topwork.terminal import run

        run(_run, extras="cpu,train")


def _run() -> None:
    from topwork_trainer.cli.commands import cli  # takes a second, in which Ctrl-C must work

    cli()
