"""The database of operations: its connection, what a repository notes of it, whether it is whole.

DBOS keeps operations in a SQLite file in the repository by default, in PostgreSQL by URL.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus, error
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from topwork.bundle import files
from topwork.changes import rows
from topwork.errors import Unavailable

APPLICATION = "topwork"

CHANGE = "change"
"""The one workflow: every kind of change takes the same steps."""

QUEUE = "changes"
"""Partitioned by model: one model's changes run one at a time, different models' side by side."""

WORKER_CONCURRENCY = 2
"""Models that one worker changes at a time: bounds its memory."""

POLL_SECONDS = 0.09
"""How often a worker looks at the queue: the most that this adds to an operation."""

MADE = ".made"
"""Suffix of the mark beside a SQLite file: it was made, so it can be lost."""


def database_url(root: Path) -> str:
    """Return the URL of the default database: a SQLite file in the repository."""
    return f"sqlite:///{root.absolute() / 'operations.sqlite'}"


def note_database(root: Path, url: str) -> None:
    """Let the repository say that its operations are elsewhere, before there is one.

    What kind of database it is, not its URL, which may have a password.
    """
    note = _note(root)
    if url != database_url(root) and not note.exists():
        files.write_file(note, f"{url.partition(':')[0]}\n".encode())


def noted_database(root: Path) -> str:
    """Return the kind of database elsewhere that the repository has operations in, or nothing."""
    note = _note(root)
    return note.read_text().strip() if note.exists() else ""


def own_database(root: Path) -> str:
    """Return the URL of the repository's own database if it has or had one, else nothing."""
    url = database_url(root)
    path = _file(url)
    return url if path is not None and (path.exists() or _mark(path).exists()) else ""


@contextlib.contextmanager
def available() -> Iterator[None]:
    """Raise Unavailable for what a database that is away, full or read-only raises."""
    try:
        yield
    except (SQLAlchemyError, error.DBOSException, OSError) as failed:
        raise Unavailable(
            f"the database of operations cannot be used now: {cause_of(failed)}", reason="DATABASE"
        ) from failed


def cause_of(failed: Exception) -> str:
    """Return what a database said, without the statement that it said it of."""
    return str(failed.orig if isinstance(failed, DBAPIError) else failed)


def prepare(url: str) -> None:
    """Create the schema and the queue where they are missing. Raises Unavailable."""
    with available():
        connect(url).destroy()


def connect(url: str) -> DBOSClient:
    """Return a client of the database, whose schema and queue are there from then on.

    Raises Unavailable if it is a file that was made before and is lost.
    """
    path = _file(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_not_lost(path)
    DBOS.migrate(url)  # as run_dbos_database_migrations does, which says of any error only Exit
    client = _client(url)
    # Before a worker starts: it looks for new queues only once a second.
    client.register_queue(
        QUEUE,
        partition_concurrency=1,
        worker_concurrency=WORKER_CONCURRENCY,
        polling_interval_sec=POLL_SECONDS,
    )
    if path is not None and not _mark(path).exists():
        files.write_file(_mark(path), f"{path.name} was made, and has operations.\n".encode())
    return client


def pending_images(url: str) -> set[str]:
    """Return the digests of the images that unfinished operations still need.

    Where the schema is there nothing is written: so it can be told on a full disk. Raises
    Unavailable, and Corrupt if the images of an operation cannot be told.
    """
    with available():
        try:
            found = _unfinished(_client(url))
        except SQLAlchemyError:  # it may be empty, or have an older schema
            found = _unfinished(connect(url))
    return {digest for row in found for digest in rows.uploads(row)}


def damage(root: Path) -> str:
    """Return what is wrong with the repository's own database; empty if nothing is.

    Nothing is changed; who writes waits meanwhile.
    """
    path = _file(database_url(root))
    assert path is not None, "it is a file"
    try:
        _check_not_lost(path)
        if not path.exists():
            return ""  # it is still to be made
        if path.stat().st_size == 0:
            return "it is empty: the next server or worker makes it anew, without operations"
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
            said = [text for (text,) in database.execute("PRAGMA integrity_check(5)")]
            database.execute("SELECT count(*) FROM workflow_status").fetchone()
    except (Unavailable, OSError, sqlite3.Error) as failed:
        return str(failed)
    return "" if said == ["ok"] else "; ".join(said)


def _unfinished(client: DBOSClient) -> list[WorkflowStatus]:
    try:
        return client.list_workflows(name=CHANGE, status=list(rows.UNFINISHED), load_input=True)
    finally:
        client.destroy()


def _client(url: str) -> DBOSClient:
    return DBOSClient(
        system_database_url=url,
        application_name=APPLICATION,
        retry_connection_errors=False,  # who calls is told, and may try another server
        # The default pickles; what is read here must never be able to run code.
        serializer=DBOSPortableJSONSerializer(),
    )


def _check_not_lost(path: Path) -> None:
    """Raise Unavailable if a SQLite file was made before, and there is nothing in its place."""
    if _mark(path).exists():
        state = "missing" if not path.exists() else "empty" if path.stat().st_size == 0 else ""
        if state:
            raise Unavailable(
                f"{path.name} is {state}, and operations were kept in it: put it back from a "
                f"backup; or, to begin with none, delete {_mark(path).name}",
                reason="DATABASE",
            )


def _file(url: str) -> Path | None:
    """Return the file of a SQLite database; None for another kind."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _mark(path: Path) -> Path:
    return path.with_name(path.name + MADE)


def _note(root: Path) -> Path:
    return root / "operations.database"
