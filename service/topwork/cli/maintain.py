"""``topwork gc`` and ``topwork fsck``: garbage collection and checks of a repository."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from topwork import tables
from topwork.bundle.blobs import KINDS
from topwork.bundle.maintenance.check import Problem, check
from topwork.bundle.maintenance.garbage import REMOVABLE, Collected, collect
from topwork.bundle.opening import open_repository
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.store import Repository
from topwork.cli.addresses import check_url
from topwork.cli.options import json_output, require_signed_option, trusted_keys_option
from topwork.errors import InvalidInput
from topwork.repository_option import RepositoryType
from topwork.storage.file_storage import FileStorage
from topwork.storage.location import Location
from topwork.storage.storage import Storage
from topwork.terminal import Console

repository_argument = click.argument("repository", type=RepositoryType(exists=True))


def check_digests(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return image digests in lower case. Raises click.BadParameter."""
    for digest in given:
        if not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise click.BadParameter(f"{digest!r} is not an image digest, 64 hexadecimal digits")
    return tuple(digest.lower() for digest in given)


@click.command()
@repository_argument
@click.option(
    "--keep",
    default=10,
    type=click.IntRange(min=1),
    help="Newest revisions to retain per model, besides the serving and the pinned ones.",
)
@click.option(
    "--spare-hours",
    default=1.0,
    type=click.FloatRange(min=0),
    help="Retain younger files. Choose more than your longest fit or upload takes: a fit or upload "
    "whose files are deleted fails and must be repeated. 0 deletes half-written files unless their "
    "process is alive.",
)
@click.option(
    "--deleted-days",
    default=7.0,
    type=click.FloatRange(min=0),
    help="Retain deleted models for so long; until then they can be undeleted.",
)
@click.option(
    "--erase",
    multiple=True,
    metavar="DIGEST",
    callback=check_digests,
    help="Image digest of a removed example: delete all revisions, shards and images that have it, "
    "of any age. Repeat it for several.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be deleted, and delete nothing.")
@click.option(
    "--database",
    envvar="TOPWORK_DATABASE",
    callback=check_url,
    default="",
    show_default=False,
    help="URL of the database of operations; required if servers or workers have one. Images of "
    "unfinished operations in it, and in the repository's SQLite file, are retained.",
)
@json_output
def gc(
    repository: Location,
    keep: int,
    spare_hours: float,
    deleted_days: float,
    erase: tuple[str, ...],
    dry_run: bool,
    database: str,
    as_json: bool,
) -> None:
    """Delete old revisions, and files that no revision refers to.

    Servers, fits and workers may run meanwhile. Exit status 1 if a file cannot be read; everything
    that it could refer to is retained. Exit status 1, too, if an example could not be erased.
    """
    from topwork.changes.database import pending_images

    opened = existing_repository(repository, database=database, writes=not dry_run)
    urls = _databases(opened.storage, database)
    with disk_errors():
        found = collect(
            opened,
            keep=keep,
            spare_seconds=spare_hours * 3600,
            deleted_seconds=deleted_days * 86400,
            pending_images=lambda: {digest for url in urls for digest in pending_images(url)},
            erase=erase,
            dry_run=dry_run,
        )
    if as_json:
        print(json.dumps(_collected_json(found, dry_run=dry_run)))
    else:
        _show_collected(found, dry_run=dry_run)
    if found.refused:
        sys.exit(1)


@click.command()
@repository_argument
@trusted_keys_option()
@require_signed_option
@json_output
def fsck(
    repository: Location, trusted_keys: Path | None, require_signed: bool, as_json: bool
) -> None:
    """Verify all checksums and references of a repository.

    Also checks the SQLite database of operations in it and, with --trusted-keys, the signatures.
    Changes nothing; servers, fits and workers may run meanwhile. Exit status 1 if there is an
    error; a note is not an error.
    """
    keys = SigningFiles(trusted_keys=trusted_keys, require_signed=require_signed)
    signing = keys.read(publishes=False)
    with progress_bar() as bar, disk_errors():
        task = bar.add_task("checking", total=None)
        opened = existing_repository(repository, writes=False)
        problems = check(
            opened,
            signing=signing,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        problems = [*_database_problems(opened.storage), *problems]
    if as_json:
        print(json.dumps(problems_json(problems)))
    else:
        show_problems(problems)
        if not problems:
            print("nothing is wrong")
    if any(problem.severity == "error" for problem in problems):
        sys.exit(1)


def existing_repository(location: Location, *, database: str = "", writes: bool) -> Repository:
    """Return the repository at a location. Raises InvalidInput if there is none."""
    opened = open_repository(location, database=database, writes=writes)
    if not {"models", *KINDS} & {*opened.storage.directories("")}:
        raise InvalidInput(
            f"{opened.storage} is no repository: it has no directory models", field="repository"
        )
    return opened


def _databases(storage: Storage, database: str) -> set[str]:
    """Return the URLs of all databases with operations of a repository.

    Raises InvalidInput if ``database`` is empty and the repository has operations elsewhere, or is
    in a bucket.
    """
    from topwork.changes.database import RECORD, database_url, noted_database, own_database

    if not database and not isinstance(storage, FileStorage):
        database_url(str(storage))  # refuses it
    kind = noted_database(storage)
    if kind and not database:
        raise InvalidInput(
            f"{storage} has operations in another database ({kind}), whose images must be "
            "retained: give its URL as --database; or, if the database is no longer used, delete "
            f"{storage.at(RECORD)}",
            field="database",
        )
    return {database, own_database(storage)} - {""}


def _database_problems(storage: Storage) -> list[Problem]:
    from topwork.changes.database import damage

    text = damage(storage)
    return [Problem(severity="error", path="operations.sqlite", text=text)] if text else []


@contextmanager
def disk_errors() -> Iterator[None]:
    """Convert an OSError of the block to a ClickException."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _show_collected(found: Collected, *, dry_run: bool) -> None:
    rows = []
    for kind in REMOVABLE:
        sizes = [file.size for file in found.removed if file.kind == kind]
        rows.append((kind, f"{len(sizes):,}", f"{sum(sizes):,}"))
    headers = ("", "would go" if dry_run else "deleted", "bytes")
    tables.console().print(tables.table(headers, rows))
    for text in found.refused:
        Console(stderr=True).print(
            "[red]not deleted:[/]", escape(text), highlight=False, soft_wrap=True
        )


def _collected_json(found: Collected, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "bytes": sum(file.size for file in found.removed),
        "removed": [
            {"kind": file.kind, "path": file.path, "bytes": file.size} for file in found.removed
        ],
        "refused": list(found.refused),
    }


def show_problems(problems: Sequence[Problem]) -> None:
    """Print a line for each problem."""
    console = Console()
    for problem in problems:  # lines, because a table would wrap digests
        colour = "red" if problem.severity == "error" else "yellow"
        console.print(
            f"[{colour}]{problem.severity}:[/] [bold]{escape(problem.path)}[/]: "
            f"{escape(problem.text)}",
            highlight=False,
            soft_wrap=True,
        )


def problems_json(problems: Sequence[Problem]) -> dict[str, object]:
    """Return problems with their numbers by severity as data for JSON."""
    return {
        "errors": sum(problem.severity == "error" for problem in problems),
        "notes": sum(problem.severity == "note" for problem in problems),
        "problems": [
            {"severity": problem.severity, "path": problem.path, "text": problem.text}
            for problem in problems
        ],
    }


def progress_bar() -> Progress:
    """Return a bar on standard error that counts files."""
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
