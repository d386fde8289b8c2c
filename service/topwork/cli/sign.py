"""``topwork keygen``, ``sign`` and ``verify``: signatures of published revisions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from topwork.bundle.signing import keys, revisions
from topwork.bundle.signing.signatures import SigningFiles
from topwork.cli.maintain import existing_repository, repository_argument
from topwork.cli.options import json_output, readable_file, trusted_keys_option
from topwork.repository_option import database_option
from topwork.storage.location import Location


@click.command()
@click.argument("key", type=click.Path(dir_okay=False, path_type=Path))
def keygen(key: Path) -> None:
    """Create a key pair for signing revisions: KEY and KEY.pub.

    Prints the id of the key. Only you can read KEY, the private key. Both files are Ed25519 keys in
    PEM, which other tools can read.
    """
    print(keys.generate(key))


@click.command()
@repository_argument
@database_option
@click.option(
    "--signing-key", required=True, type=readable_file, help="PEM file of the private key."
)
@click.option("--model", help="Sign only this model's revisions. Default: all models.")
@click.option("--revision", type=click.IntRange(min=1), help="Sign only this one. Default: all.")
def sign(
    repository: Location, database: str, signing_key: Path, model: str | None, revision: int | None
) -> None:
    """Sign published revisions of a repository.

    Verifies all files of a revision first. Keeps signatures of other keys. Servers may run.
    """
    key = keys.read_signing_key(signing_key)
    found = existing_repository(repository, database=database, writes=True)
    for name in [model] if model else found.models():
        for number in [revision] if revision else found.revisions(name):
            new = revisions.sign(found, name, number, key)
            print(f"models/{name}/revisions/{number} {'signed' if new else 'was signed'}")


@click.command()
@repository_argument
@trusted_keys_option(required=True)
@json_output
def verify(repository: Location, trusted_keys: Path, as_json: bool) -> None:
    """List the trusted signatures of a repository's revisions, newest first.

    Exit status 1 if a server with --require-signed would refuse a revision.
    """
    files = SigningFiles(trusted_keys=trusted_keys, require_signed=True)
    refused = False
    for revision in revisions.verify(
        existing_repository(repository, writes=False), files.read(publishes=False)
    ):
        refused |= bool(revision.problem)
        name = f"models/{revision.model}/revisions/{revision.revision}"
        if as_json:
            row = {"name": name, "serving": revision.serving}
            print(json.dumps({**row, "keys": revision.keys, "error": revision.problem}))
        else:
            serving = " (serves)" if revision.serving else ""
            signers = f"signed by {', '.join(revision.keys)}"
            print(f"{name}{serving}: {revision.problem or signers}")
    if refused:
        sys.exit(1)
