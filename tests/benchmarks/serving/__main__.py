"""Serving benchmark's command line: ``PYTHONPATH=tests python -m benchmarks.serving --help``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks.serving import plot, tables
from benchmarks.serving.suite import PARTS, Suite
from benchmarks.serving.tables import Table
from benchmarks.serving.workload import prepare

DOCS = Path(__file__).parents[3] / "docs"
TABLE_WIDTH = 130
Folder = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("data", required=False, type=Folder)
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Default: all."
)
@click.option("--quick", is_flag=True, help="About a minute instead of six; less exact.")
@click.option(
    "--swaps",
    default=1000,
    type=click.IntRange(min=10),
    help="Number of swaps of revisions under load.",
)
@click.option(
    "--peers",
    type=Folder,
    help="Measure other servers too, installed into environments below this directory.",
)
@click.option(
    "--work",
    type=Folder,
    help="Directory that stores the models for the next run. Default: temporary.",
)
@click.option("--docs", is_flag=True, help="Write the tables into docs/benchmarks.md.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Default: stdout."
)
def main(
    data: Path | None,
    parts: Sequence[str],
    quick: bool,
    swaps: int,
    peers: Path | None,
    work: Path | None,
    docs: bool,
    json_file: Path | None,
) -> None:
    """Measure ``topwork serve`` against a bare loop and against other servers.

    DATA is a folder with a folder of photos for each class; without it flowers are rendered.
    """
    console, made = Console(), list[Table]()
    console.width = max(console.width, TABLE_WIDTH)
    with tempfile.TemporaryDirectory() as temporary:
        root = work or Path(temporary)
        workload = prepare(data, root, models=100 if quick else 1000)
        suite = Suite(workload, Path(temporary), quick=quick, swaps=swaps, peers=peers)
        for part in parts or PARTS:
            if part != "peers" or peers is not None:
                made.append(suite.measure(part))
                tables.show(made[-1], console)
    lines = "".join(map(tables.json_lines, made))
    if json_file is None:
        print(lines, end="")
    else:
        json_file.write_text(lines)
    if docs:
        tables.write(DOCS / "benchmarks.md", made)
        for table in made:
            if table.name == "peers":
                (DOCS / "serving.svg").write_text(plot.both_ends(table.records))


if __name__ == "__main__":
    main()
