"""``topwork copy-repository``: a copy of a repository in another directory or bucket."""

from __future__ import annotations

import json
import sys

import click

from topwork import tables
from topwork.bundle.maintenance.copy_blobs import COPIED
from topwork.bundle.maintenance.copying import Copied, copy
from topwork.bundle.opening import open_repository
from topwork.cli.maintain import (
    disk_errors,
    existing_repository,
    problems_json,
    progress_bar,
    show_problems,
)
from topwork.cli.options import json_output
from topwork.errors import InvalidInput
from topwork.repository_option import RepositoryType, database_option
from topwork.storage.location import Location, bucket_key


@click.command()
@click.argument("source", type=RepositoryType(exists=True))
@click.argument("target", type=RepositoryType())
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Copy only this model. Repeat it for several. Default: all, and all backbones that were "
    "added by name.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be copied, and write nothing.")
@database_option
@json_output
def copy_repository(
    source: Location,
    target: Location,
    models: tuple[str, ...],
    dry_run: bool,
    database: str,
    as_json: bool,
) -> None:
    """Copy the models of SOURCE to TARGET, each a directory or the URL of a bucket.

    Revisions, signatures, training images, evaluation sets, review queues and the serving pointers
    with their history are the same bytes in TARGET; every file is verified. Servers and workers
    may use SOURCE meanwhile. After an interruption, or when revisions were published since, run it
    again: it copies what is new, and moves the serving pointers forward.

    The database of operations is not copied. The history of operations stays behind, and
    unfinished ones are not carried out in TARGET: let them finish first, then run it once more.
    Deleted models are left out.

    Writes nothing if TARGET has another model of a name. Exit status 1 if a file of SOURCE is
    damaged; a model that needs it does not serve in TARGET, and everything else is copied. The
    database is that of TARGET, if it is a bucket.
    """
    if _place(source) == _place(target):
        raise InvalidInput(f"{target} is the source, too", field="target")
    with progress_bar() as bar, disk_errors():
        task = bar.add_task("copying", total=None)
        copied = copy(
            existing_repository(source, writes=False),
            open_repository(target, database=database, writes=not dry_run),
            models=models,
            dry_run=dry_run,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(_json(copied, dry_run=dry_run)))
    else:
        _show(copied, dry_run=dry_run)
    if any(problem.severity == "error" for problem in copied.problems):
        sys.exit(1)


def _place(location: Location) -> str:
    return bucket_key(location) if isinstance(location, str) else str(location.resolve())


def _show(copied: Copied, *, dry_run: bool) -> None:
    rows = [
        (kind, f"{copied.written.get(kind, 0):,}", f"{copied.present.get(kind, 0):,}")
        for kind in COPIED
    ]
    headers = ("", "would be copied" if dry_run else "copied", "there already")
    tables.console().print(tables.table(headers, rows))
    print(f"{copied.size:,} bytes")
    show_problems(copied.problems)


def _json(copied: Copied, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "bytes": copied.size,
        "copied": {kind: copied.written.get(kind, 0) for kind in COPIED},
        "present": {kind: copied.present.get(kind, 0) for kind in COPIED},
        "serving": dict(copied.serving),
        **problems_json(copied.problems),
    }
