"""Options about signatures of revisions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click

from topwork.bundle.signing.signatures import SigningFiles

trusted_keys_option = click.option(
    "--trusted-keys",
    type=click.Path(exists=True, path_type=Path),
    help="Public keys (PEM file, or a directory of them) whose signatures count.",
)
signing_key_option = click.option(
    "--signing-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Private key (PEM file) that signs what is published.",
)
require_signed_option = click.option(
    "--require-signed", is_flag=True, help="Refuse revisions that no trusted key has signed."
)


def signing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options about signatures, as one argument ``signing``."""

    @trusted_keys_option
    @require_signed_option
    @signing_key_option
    @functools.wraps(command)
    def collected(
        *,
        trusted_keys: Path | None,
        require_signed: bool,
        signing_key: Path | None,
        **others: object,
    ) -> None:
        signing = SigningFiles(
            trusted_keys=trusted_keys, require_signed=require_signed, signing_key=signing_key
        )
        command(signing=signing, **others)

    return collected
