"""``topwork token``: create a bearer token for the access file."""

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
    help="Role of the principal.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["*"],
    help="Models of the role: a name, or a prefix and *. Repeatable.",
)
@json_output
@click.argument("principal")
def token(role: str, models: Sequence[str], as_json: bool, principal: str) -> None:
    """Create a bearer token for PRINCIPAL and its entry in the access file.

    The entry goes to standard output, to be appended to the access file; it contains only a digest
    of the token. The token goes to standard error and is stored nowhere. --json prints one object:
    token, entry.
    """
    # Imported here, so that the other commands start faster.
    from topwork.access import tokens

    if not _NAME.fullmatch(principal):
        text = f"principal {principal!r} must be 1 to 63 letters, digits, _ or -"
        raise InvalidInput(text, field="principal")
    made = tokens.make()
    if as_json:
        print(json.dumps({"token": made.token, "entry": made.entry}))
        return
    click.echo(f"the token, a secret that is not shown again: {made.token}", err=True)
    print(f"[principals.{principal}]")
    print(f"tokens = {json.dumps([made.entry])}")
    print(f"{role} = {json.dumps(list(models))}")
