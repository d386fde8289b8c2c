"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

address = click.option("--address", default="127.0.0.1:50051", help="HOST:PORT of the server.")
model_option = click.option("--model", required=True, help="The model's name.")
json_output = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


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
