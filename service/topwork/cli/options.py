"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from topwork.bundle.limits import DEFAULT_LIMITS
from topwork.errors import ImageError
from topwork.rpc.client import Client

START_SECONDS = 10.0
"""How long a command waits for a server that does not answer yet."""

address = click.option("--address", default="127.0.0.1:50051", help="HOST:PORT of the server.")
model_option = click.option("--model", required=True, help="The model's name.")
json_output = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def read_photo(path: Path) -> bytes:
    """Return a file's bytes. Raises ImageError if it cannot be read or is too large to be sent."""
    try:
        length = path.stat().st_size
        if length > DEFAULT_LIMITS.max_image_bytes:
            raise ImageError(
                f"the file has {length} bytes; the limit is {DEFAULT_LIMITS.max_image_bytes}",
                reason="IMAGE_TOO_LARGE",
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Yield a client of the server at ``address``, which may be starting. Raises CallFailed."""
    with Client(address) as client:
        client.wait_until_ready(START_SECONDS)
        yield client


def photo_files(given: Sequence[Path]) -> list[Path]:
    """Return the files among ``given`` and below its directories, sorted; hidden ones left out."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += sorted(
                below
                for below in path.rglob("*")
                if below.is_file() and not below.name.startswith(".")
            )
        else:
            found.append(path)
    return found
