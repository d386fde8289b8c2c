"""``topwork proto``: the .proto files from which clients in other languages are generated."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click
from google.rpc import status_pb2

PACKAGES = ("topwork.v1", "topwork.inference")

GOOGLE = Path(status_pb2.__file__).parents[1]
"""Directory of the .proto files of googleapis-common-protos."""

DETAILS = "google/rpc/error_details.proto"
"""Details of errors; no file of this API imports it."""

WELL_KNOWN = "google/protobuf/"
"""Files that every protoc contains."""


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def proto(directory: Path) -> None:
    """Write the .proto files of the API, and those that they import, to DIRECTORY.

    protoc, buf and other generators need no other include path.
    """
    texts = {
        f"{package.replace('.', '/')}/{file.name}": file.read_text(encoding="utf-8")
        for package in PACKAGES
        for file in resources.files(package).iterdir()
        if file.name.endswith(".proto")
    }
    missing = [DETAILS, *_imported(*texts.values())]
    while missing:
        name = missing.pop()
        if name not in texts and not name.startswith(WELL_KNOWN):
            texts[name] = _google(name)
            missing += _imported(texts[name])
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    click.echo(f"{len(texts)} files in {directory}", err=True)


def _imported(*texts: str) -> list[str]:
    return re.findall(r'^import (?:public )?"(.+)";', "\n".join(texts), flags=re.MULTILINE)


def _google(name: str) -> str:
    path = GOOGLE.parent / name
    # googleapis-common-protos renames some files to NAME_proto.proto.
    other = path.with_name(f"{path.stem}_proto.proto")
    return (path if path.exists() else other).read_text(encoding="utf-8")
