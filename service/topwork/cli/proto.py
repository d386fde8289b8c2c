"""``topwork proto``: the contract's .proto files, to generate clients in other languages from."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click
from google.rpc import status_pb2

PACKAGES = ("topwork.v1", "topwork.inference")

GOOGLE = Path(status_pb2.__file__).parents[1]
"""Where googleapis-common-protos has its files, .proto and Python side by side."""

DETAILS = "google/rpc/error_details.proto"
"""What errors carry; no file of ours imports it."""

COMPILERS_OWN = "google/protobuf/"
"""Every protoc brings these itself."""


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def proto(directory: Path) -> None:
    """Write the contract's .proto files into DIRECTORY, with those of Google's that they import.

    DIRECTORY is then the only include path that protoc, buf or another generator needs.
    """
    texts = {
        f"{package.replace('.', '/')}/{file.name}": file.read_text(encoding="utf-8")
        for package in PACKAGES
        for file in resources.files(package).iterdir()
        if file.name.endswith(".proto")
    }
    wanted = [DETAILS, *_imported(*texts.values())]
    while wanted:
        name = wanted.pop()
        if name not in texts and not name.startswith(COMPILERS_OWN):
            texts[name] = _google(name)
            wanted += _imported(texts[name])
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    click.echo(f"{len(texts)} files in {directory}", err=True)


def _imported(*texts: str) -> list[str]:
    return re.findall(r'^import (?:public )?"(.+)";', "\n".join(texts), flags=re.MULTILINE)


def _google(name: str) -> str:
    path = GOOGLE.parent / name
    # The package has this one under another name.
    other = path.with_name(f"{path.stem}_proto.proto")
    return (path if path.exists() else other).read_text(encoding="utf-8")
