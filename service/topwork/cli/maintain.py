"""``topwork gc`` and ``topwork fsck``: keep a repository small and sound, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from topwork import tables
from topwork.bundle.blobs import KINDS
from topwork.bundle.maintenance.check import Problem, check
from topwork.bundle.maintenance.garbage import REMOVABLE, Collected, collect
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.store import Repository
from topwork.cli.addresses import check_url
from topwork.cli.options import json_output
from topwork.cli.signing_options import require_signed_option, trusted_keys_option
from topwork.errors import InvalidInput
from topwork.terminal import Console

repository_argument = click.argument(
    "repository", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


@click.command()
@repository_argument
@click.option(
    "--keep",
    default=10,
    type=click.IntRange(min=1),
    help="Newest revisions of each model that stay, besides the serving and the pinned ones.",
)
@click.option(
    "--spare-hours",
    default=1.0,
    type=click.FloatRange(min=0),
    help="What is younger stays. It should be longer than any fit and any upload takes: one that "
    "loses what it has stored fails, and must be repeated. 0 leaves of half-written files only "
    "those of living processes.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option(
    "--database",
    callback=check_url,
    default="",
    help="URL of the database of operations, whose images stay until they are finished, besides "
    "the SQLite file in the repository. Needed where servers or workers were given one.",
)
@json_output
def gc(
    repository: Path, keep: int, spare_hours: float, dry_run: bool, database: str, as_json: bool
) -> None:
    """Delete old revisions of REPOSITORY's models, and what nothing refers to any more.

    Servers, fits and workers may go on meanwhile. Exit status 1 if something cannot be read: all
    that it might refer to stays.
    """
    from topwork.changes.database import pending_images

    urls = _databases(repository, database)
    with _disk_errors():
        found = collect(
            opened(repository),
            keep=keep,
            spare_seconds=spare_hours * 3600,
            pending_images=lambda: {digest for url in urls for digest in pending_images(url)},
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
@trusted_keys_option
@require_signed_option
@json_output
def fsck(repository: Path, trusted_keys: Path | None, require_signed: bool, as_json: bool) -> None:
    """Verify every digest and every reference in REPOSITORY and name all that is wrong.

    And its own database of operations, and with --trusted-keys the signatures.
    Nothing is changed; servers, fits and workers may go on meanwhile. Exit status 1 if there is an
    error; notes are none.
    """
    keys = SigningFiles(trusted_keys=trusted_keys, require_signed=require_signed)
    signing = keys.read(publishes=False)
    with _progress_bar() as bar, _disk_errors():
        task = bar.add_task("checking", total=None)
        problems = check(
            opened(repository),
            signing=signing,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        problems = [*_database_problems(repository), *problems]
    if as_json:
        print(json.dumps(_problems_json(problems)))
    else:
        _show_problems(problems)
    if any(one.severity == "error" for one in problems):
        sys.exit(1)


def opened(root: Path) -> Repository:
    """Return the repository at ``root``. Raises InvalidInput if there is none."""
    if not any((root / name).is_dir() for name in ("models", *KINDS)):
        raise InvalidInput(
            f"{root} is no repository: it has no directory models", field="repository"
        )
    return Repository(root)


def _databases(root: Path, database: str) -> set[str]:
    """Return the URLs of all databases that may have operations of a repository.

    Raises InvalidInput if one is not given.
    """
    from topwork.changes.database import noted_database, own_database

    kind = noted_database(root)
    if kind and not database:
        raise InvalidInput(
            f"{root} has operations in a database of its own ({kind}), whose images must stay: "
            "give its URL as --database; or, if it is used no more, delete "
            f"{root / 'operations.database'}",
            field="database",
        )
    return {database, own_database(root)} - {""}


def _database_problems(root: Path) -> list[Problem]:
    from topwork.changes.database import damage

    text = damage(root)
    return [Problem(severity="error", path="operations.sqlite", text=text)] if text else []


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _show_collected(found: Collected, *, dry_run: bool) -> None:
    rows = []
    for kind in REMOVABLE:
        sizes = [one.size for one in found.removed if one.kind == kind]
        rows.append((kind, f"{len(sizes):,}", f"{sum(sizes):,}"))
    headers = ("", "would go" if dry_run else "deleted", "bytes")
    tables.console().print(tables.table(headers, rows))
    for text in found.refused:
        Console(stderr=True).print("[red]kept:[/]", escape(text), highlight=False, soft_wrap=True)


def _collected_json(found: Collected, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "bytes": sum(one.size for one in found.removed),
        "removed": [
            {"kind": one.kind, "path": one.path, "bytes": one.size} for one in found.removed
        ],
        "refused": list(found.refused),
    }


def _show_problems(problems: list[Problem]) -> None:
    console = Console()
    for one in problems:  # no table: it would break digests into pieces
        colour = "red" if one.severity == "error" else "yellow"
        text = f"[{colour}]{one.severity}:[/] [bold]{escape(one.path)}[/]: {escape(one.text)}"
        console.print(text, highlight=False, soft_wrap=True)
    if not problems:
        console.print("nothing is wrong")


def _problems_json(problems: list[Problem]) -> dict[str, object]:
    return {
        "errors": sum(one.severity == "error" for one in problems),
        "notes": sum(one.severity == "note" for one in problems),
        "problems": [
            {"severity": one.severity, "path": one.path, "text": one.text} for one in problems
        ],
    }


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
