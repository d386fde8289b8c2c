"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from topwork import CallFailed, Client, Credentials
from topwork.cli.addresses import Address
from topwork.cli.candidates import naming_candidates
from topwork.errors import InvalidInput
from topwork.inputs import folders
from topwork.inputs.folders import LeftOut, Listing
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import file_name
from topwork.v1 import change_pb2 as change_pb

START_SECONDS = 30.0
"""How long a command waits for a server that does not answer yet."""
QUIET_SECONDS = 1.0
"""How long of it without saying so."""

readable_file = click.Path(exists=True, dir_okay=False, path_type=Path)
model_option = click.option("--model", required=True, help="The model's name.")
expected_revision_option = click.option(
    "--expected-revision",
    default=0,
    type=click.IntRange(min=0),
    help="Change nothing unless this one serves; 0: whichever serves.",
)
validate_only_option = click.option(
    "--validate-only", is_flag=True, help="Say what would come of it, and change nothing."
)
json_output = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAt:
    """A server, and what is shown to it."""

    address: str
    credentials: Credentials


def server_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which server is meant, as ``server``.

    Each has an environment variable for all commands, beside the one for each command.
    """

    @click.option(
        "--address",
        default="127.0.0.1:50051",
        envvar="TOPWORK_ADDRESS",
        type=Address(of_client=True),
        help="HOST:PORT of the server, or another name that gRPC resolves.",
    )
    @click.option(
        "--tls",
        is_flag=True,
        envvar="TOPWORK_TLS",
        help="Speak TLS; the options below with a certificate imply it.",
    )
    @click.option(
        "--tls-ca",
        type=readable_file,
        envvar="TOPWORK_TLS_CA",
        help="PEM of who signed the server's certificate. Default: the well-known authorities.",
    )
    @click.option(
        "--client-cert",
        type=readable_file,
        envvar="TOPWORK_CLIENT_CERT",
        help="PEM of your certificate.",
    )
    @click.option(
        "--client-key", type=readable_file, envvar="TOPWORK_CLIENT_KEY", help="PEM of its key."
    )
    @click.option(
        "--token",
        default="",
        envvar="TOPWORK_TOKEN",
        show_default=False,
        help="Bearer token. Others see a command line: better in the environment.",
    )
    @functools.wraps(command)
    def collected(
        *,
        address: str,
        tls: bool,
        tls_ca: Path | None,
        client_cert: Path | None,
        client_key: Path | None,
        token: str,
        **others: object,
    ) -> None:
        credentials = Credentials.from_files(
            tls=tls, tls_ca=tls_ca, client_cert=client_cert, client_key=client_key, token=token
        )
        command(server=ServerAt(address=address, credentials=credentials), **others)

    return collected


def change_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all changes, as ``request_id`` and ``options``."""

    @click.option("--request-id", default="", help="A UUID: a repeated call is the same operation.")
    @expected_revision_option
    @validate_only_option
    @click.option(
        "--max-old-class-drop",
        type=click.FloatRange(0, 1),
        help="Accuracy on the old labels that may be lost. Default: the server's, 0.02.",
    )
    @click.option(
        "--min-new-class-recall",
        type=click.FloatRange(0, 1),
        help="Share of the taught label's photos to be called so. Default: the server's, 0.6.",
    )
    @click.option(
        "--max-conflicts",
        type=click.IntRange(min=0),
        help="Photos that may show what another label's show. Default: any number.",
    )
    @functools.wraps(command)
    def collected(
        *,
        expected_revision: int,
        validate_only: bool,
        max_old_class_drop: float | None,
        min_new_class_recall: float | None,
        max_conflicts: int | None,
        **others: object,
    ) -> None:
        gate = change_pb.Gate(
            max_old_class_drop=max_old_class_drop,
            min_new_class_recall=min_new_class_recall,
            max_conflicts=max_conflicts,
        )
        options = change_pb.ChangeOptions(
            expected_revision=expected_revision, validate_only=validate_only, gate=gate
        )
        command(options=options, **others)

    return collected


def read_photo(path: Path) -> bytes:
    """Return a file's bytes. Raises ImageError if it cannot be read or is too large to be sent."""
    return folders.read_photo(path, most_bytes=DEFAULT_LIMITS.max_image_bytes)


@contextmanager
def connected(server: ServerAt) -> Iterator[Client]:
    """Yield a client of ``server``, which may be starting. Raises CallFailed, InvalidInput."""
    with Client(server.address, server.credentials) as client:
        try:
            client.wait_until_ready(min(QUIET_SECONDS, START_SECONDS))
        except CallFailed:
            click.echo(f"waiting for a server at {server.address}", err=True)
            client.wait_until_ready(START_SECONDS)
        with naming_candidates(client):
            yield client


def photo_files(given: Sequence[Path], *, field: str, one_class: bool = False) -> Listing:
    """Return the files among ``given`` and the photos below its folders; report what is left out.

    Raises InvalidInput if there is none, about ``field``, and as ``list_photos``.
    """
    found = [
        folders.list_photos(path, one_class=one_class)
        if path.is_dir()
        else Listing(files=(path,), omitted=())
        for path in given
    ]
    listing = Listing(
        files=tuple(path for one in found for path in one.files),
        omitted=tuple(omitted for one in found for omitted in one.omitted),
    )
    report_left_out(folders.group(listing.omitted))
    if not listing.files:
        raise InvalidInput(
            f"there is no photo below {', '.join(map(file_name, given))}", field=field
        )
    return listing


def report_left_out(left_out: Sequence[LeftOut]) -> None:
    """Print what is left out on standard error."""
    for one in left_out:
        click.echo(one.line(), err=True)
