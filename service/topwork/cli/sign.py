"""``topwork keygen``, ``sign`` and ``verify``: signatures of published revisions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from topwork.bundle.signing import keys, revisions
from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli.maintain import opened, repository_argument
from topwork.cli.options import json_output
from topwork.cli.signing_options import signing_key_option, trusted_keys_option


@click.command()
@click.argument("key", type=click.Path(dir_okay=False, path_type=Path))
def keygen(key: Path) -> None:
    """Make a key that signs revisions: KEY, which only you can read, and KEY.pub, to be trusted.

    Prints its id. Both are Ed25519 in PEM, as other tools write them, too.
    """
    print(keys.generate(key))


@click.command()
@repository_argument
@signing_key_option
@click.option("--model", help="Only this one's revisions. Default: all models'.")
@click.option("--revision", type=click.IntRange(min=1), help="Only this one. Default: all.")
@click.pass_context
def sign(
    context: click.Context,
    repository: Path,
    signing_key: Path | None,
    model: str | None,
    revision: int | None,
) -> None:
    """Sign revisions of REPOSITORY that are published already, beside who signed them before.

    All that a revision's manifest names is verified first. Servers may go on meanwhile.
    """
    if signing_key is None:
        raise click.MissingParameter(ctx=context, param_hint="--signing-key", param_type="option")
    key = keys.read_signing_key(signing_key)
    found = opened(repository)
    for name in [model] if model else found.models():
        for number in [revision] if revision else found.revisions(name):
            new = revisions.sign(found, name, number, key)
            print(f"models/{name}/revisions/{number} {'signed' if new else 'was signed'}")


@click.command()
@repository_argument
@trusted_keys_option
@json_output
@click.pass_context
def verify(
    context: click.Context, repository: Path, trusted_keys: Path | None, as_json: bool
) -> None:
    """Tell which trusted keys have signed which revisions of REPOSITORY, newest first.

    Exit status 1 if a server with --require-signed would refuse one.
    """
    if trusted_keys is None:
        raise click.MissingParameter(ctx=context, param_hint="--trusted-keys", param_type="option")
    files = SigningFiles(trusted_keys=trusted_keys, require_signed=True)
    refused = False
    for one in revisions.verify(opened(repository), files.read(publishes=False)):
        refused |= bool(one.problem)
        name = f"models/{one.model}/revisions/{one.revision}"
        if as_json:
            told = {"name": name, "serving": one.serving, "keys": one.keys, "error": one.problem}
            print(json.dumps(told))
        else:
            serving = " (serves)" if one.serving else ""
            print(f"{name}{serving}: {one.problem or 'signed by ' + ', '.join(one.keys)}")
    if refused:
        sys.exit(1)
