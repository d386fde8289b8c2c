"""``topwork token``: make a bearer token for the access file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import click

from topwork.cli.options import json_output
from topwork.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


@click.command()
@click.option(
    "--role",
    default="classify",
    type=click.Choice(["classify", "train", "admin"]),
    help="What its bearer may do.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["*"],
    help="Of which models: a name, or the beginning of names and *. May be repeated.",
)
@json_output
@click.argument("principal")
def token(role: str, models: Sequence[str], as_json: bool, principal: str) -> None:
    """Make a token for PRINCIPAL, and the lines of the access file that let it in.

    The lines go to standard output and may be appended to the file, which has the token's digest
    only; the token goes to standard error, and is kept nowhere. With --json, one object: token,
    entry.
    """
    # Imported here: the other commands need none of it.
    from topwork.access import tokens

    if not _NAME.fullmatch(principal):
        text = f"principal {principal!r} must be 1 to 63 letters, digits, _ or -"
        raise InvalidInput(text, field="principal")
    made = tokens.make()
    if as_json:
        print(json.dumps({"token": made.token, "entry": made.entry}))
        return
    click.echo(f"the token, for its bearer alone; it is not shown again: {made.token}", err=True)
    print(f"[principals.{principal}]")
    print(f"tokens = {json.dumps([made.entry])}")
    print(f"{role} = {json.dumps(list(models))}")
