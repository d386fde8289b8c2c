"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from topwork import CallFailed, Client, Credentials
from topwork.cli.addresses import Address
from topwork.cli.candidates import suggest_names
from topwork.errors import InvalidInput
from topwork.printable import file_name
from topwork.v1 import change_pb2 as change_pb

START_SECONDS = 30.0
"""Time for which a command waits for a server that is starting."""
QUIET_SECONDS = 1.0
"""Time after which a command prints that it is waiting."""

readable_file = click.Path(exists=True, dir_okay=False, path_type=Path)
model_option = click.option("--model", required=True, help="Name of the model.")
expected_revision_option = click.option(
    "--expected-revision",
    default=0,
    type=click.IntRange(min=0),
    help="Revision that must be serving, otherwise the call fails; 0: any.",
)
validate_only_option = click.option(
    "--validate-only", is_flag=True, help="Dry run: report the result and change nothing."
)
json_output = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line."
)
require_signed_option = click.option(
    "--require-signed", is_flag=True, help="Refuse revisions that no trusted key has signed."
)


def trusted_keys_option(
    *, required: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option ``--trusted-keys``."""
    return click.option(
        "--trusted-keys",
        required=required,
        type=click.Path(exists=True, path_type=Path),
        help="PEM file of trusted public keys, or a directory of such files.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Address of a server and the credentials for it."""

    address: str
    credentials: Credentials


def server_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a connection, as one argument ``server``.

    Each option has an environment variable for all commands, besides the command's own variable.
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
        help="Connect with TLS; implied by --tls-ca and --client-cert.",
    )
    @click.option(
        "--tls-ca",
        type=readable_file,
        envvar="TOPWORK_TLS_CA",
        help="PEM file of the CA that signed the server's certificate. Default: the CAs that gRPC "
        "trusts.",
    )
    @click.option(
        "--client-cert",
        type=readable_file,
        envvar="TOPWORK_CLIENT_CERT",
        help="PEM file of your client certificate (mTLS).",
    )
    @click.option(
        "--client-key",
        type=readable_file,
        envvar="TOPWORK_CLIENT_KEY",
        help="PEM file of the client certificate's private key.",
    )
    @click.option(
        "--token",
        default="",
        envvar="TOPWORK_TOKEN",
        show_default=False,
        help="Bearer token. Safer in TOPWORK_TOKEN: other users of this host see command lines.",
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
        command(server=ServerOptions(address=address, credentials=credentials), **others)

    return collected


def change_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of changes, as arguments ``request_id`` and ``options``."""

    @click.option(
        "--request-id",
        default="",
        show_default=False,
        help="Idempotency key, a UUID: a repeated call returns the operation of the first.",
    )
    @expected_revision_option
    @validate_only_option
    @click.option(
        "--max-old-class-drop",
        type=click.FloatRange(0, 1),
        help="Gate: greatest loss of accuracy on the old labels. Default: 0.02.",
    )
    @click.option(
        "--min-new-class-recall",
        type=click.FloatRange(0, 1),
        help="Gate: least recall of the label of the new photos. Default: 0.6.",
    )
    @click.option(
        "--max-conflicts",
        type=click.IntRange(min=0),
        help="Gate: most photos that duplicate photos of another label. Default: no limit.",
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


def check_page(path: Path | None, *, field: str) -> None:
    """Raise InvalidInput unless the folder of a page to write exists."""
    if path is not None and not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {file_name(path.parent)}", field=field)


def write_page(path: Path, page: str, *, field: str) -> None:
    """Write a page. Raises InvalidInput if that is impossible."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        text = f"{file_name(path)} cannot be written: {error.strerror}"
        raise InvalidInput(text, field=field) from error


@contextmanager
def connected(server: ServerOptions) -> Iterator[Client]:
    """Yield a client of a server, which may be starting. Raises CallFailed, InvalidInput."""
    with Client(server.address, server.credentials) as client:
        try:
            client.wait_until_ready(min(QUIET_SECONDS, START_SECONDS))
        except CallFailed:
            click.echo(f"waiting for a server at {server.address}", err=True)
            client.wait_until_ready(START_SECONDS)
        with suggest_names(client):
            yield client
