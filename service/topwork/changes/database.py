"""Database of operations: connection, schema, integrity check, and its record in the repository.

DBOS keeps operations in a SQLite file in the repository by default, in PostgreSQL by URL. A
repository in a bucket has no default.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, WorkflowStatus, error
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from topwork.changes import rows
from topwork.errors import InvalidInput, Unavailable
from topwork.storage import files
from topwork.storage.file_storage import FileStorage
from topwork.storage.location import Location
from topwork.storage.storage import Storage

APPLICATION = "topwork"

CHANGE = "change"
"""The name of the workflow: all kinds of changes have the same steps."""

QUEUE = "changes"
"""Partitioned by model: the changes of a model run one at a time, those of models in parallel."""

WORKER_CONCURRENCY = 2
"""Raising it lets a worker change more models at a time, which takes more memory."""

POLL_SECONDS = 0.2
"""Raising it delays the start of operations, but polls the queue less often.

A poll takes 7 ms of a core: with 0.09 s an idle worker took 8.5 % of a core, with 0.2 s it takes 5.
"""

RECORD = "operations.database"
"""Key of the file with the kind of database, if it is not the default."""

MADE = ".made"
"""Suffix of the marker beside a SQLite file: if the file is missing, it was lost."""


def database_url(location: Location) -> str:
    """Return the URL of the default database: a SQLite file in the repository.

    Raises InvalidInput for a bucket, which can have none.
    """
    if isinstance(location, Path):
        return _own_url(location)
    raise InvalidInput(
        "a repository in a bucket needs a database of operations: "
        "give --database postgresql://user@host/topwork or, for a single host, "
        "--database sqlite:////path/operations.sqlite",
        field="database",
    )


def note_database(storage: Storage | Path, url: str) -> None:
    """Record in the repository that its operations are in another database, if they are.

    The record has the kind of database, not its URL, which may have a password.
    """
    storage = _storage(storage)
    if url != _default(storage) and not storage.exists(RECORD):
        storage.write(RECORD, f"{url.partition(':')[0]}\n".encode())


def noted_database(storage: Storage | Path) -> str:
    """Return the recorded kind of another database with the repository's operations, or ``""``."""
    storage = _storage(storage)
    return storage.read(RECORD).decode().strip() if storage.exists(RECORD) else ""


def own_database(storage: Storage | Path) -> str:
    """Return the URL of the repository's own database if it has or had one, or ``""``."""
    url = _default(_storage(storage))
    path = _file(url)
    return url if path is not None and (path.exists() or _marker(path).exists()) else ""


@contextlib.contextmanager
def available() -> Iterator[None]:
    """Convert the errors of an unreachable, full or read-only database to Unavailable."""
    try:
        yield
    except (SQLAlchemyError, error.DBOSException, OSError) as failed:
        raise Unavailable(
            f"the database of operations cannot be used now: {cause_of(failed)}", reason="DATABASE"
        ) from failed


def cause_of(failed: Exception) -> str:
    """Return a database's error message, without the SQL statement."""
    return str(failed.orig if isinstance(failed, DBAPIError) else failed)


def prepare(url: str) -> None:
    """Create the schema and the queue if they are missing. Raises Unavailable."""
    with available():
        connect(url).destroy()


def connect(url: str) -> DBOSClient:
    """Create the schema and the queue if they are missing; return a client.

    Raises Unavailable if a SQLite file was lost.
    """
    path = _file(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_not_lost(path)
    DBOS.migrate(url)  # run_dbos_database_migrations would hide the cause of an error
    client = _client(url)
    # Registered before a worker starts, which polls for new queues only once a second.
    client.register_queue(
        QUEUE,
        partition_concurrency=1,
        worker_concurrency=WORKER_CONCURRENCY,
        polling_interval_sec=POLL_SECONDS,
    )
    if path is not None and not _marker(path).exists():
        files.write_file(_marker(path), f"{path.name} was made, and has operations.\n".encode())
    return client


def pending_images(url: str) -> set[str]:
    """Return the digests of the images that unfinished operations still need.

    Writes nothing if the schema exists, so that it works on a full disk. Raises Unavailable, and
    Corrupt if the images of an operation cannot be read.
    """
    with available():
        try:
            unfinished = _unfinished(_client(url))
        except SQLAlchemyError:  # it may be empty, or have an older schema
            unfinished = _unfinished(connect(url))
    return {digest for row in unfinished for digest in rows.uploads(row)}


def damage(storage: Storage | Path) -> str:
    """Return the damage of the repository's own database; empty if it is intact.

    Reads only; writers wait meanwhile.
    """
    path = _file(_default(_storage(storage)))
    if path is None:
        return ""
    try:
        _check_not_lost(path)
        if not path.exists():
            return ""  # not created yet
        if path.stat().st_size == 0:
            return "it is empty: the next server or worker creates it again, without operations"
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
            messages = [text for (text,) in database.execute("PRAGMA integrity_check(5)")]
            database.execute("SELECT count(*) FROM workflow_status").fetchone()
    except (Unavailable, OSError, sqlite3.Error) as failed:
        return str(failed)
    return "" if messages == ["ok"] else "; ".join(messages)


def _unfinished(client: DBOSClient) -> list[WorkflowStatus]:
    try:
        return client.list_workflows(name=CHANGE, status=list(rows.UNFINISHED), load_input=True)
    finally:
        client.destroy()


def _client(url: str) -> DBOSClient:
    return DBOSClient(
        system_database_url=url,
        application_name=APPLICATION,
        retry_connection_errors=False,  # the client gets the error, and may try another server
        # The default is pickle, which could run code when it is read.
        serializer=DBOSPortableJSONSerializer(),
    )


def _check_not_lost(path: Path) -> None:
    """Raise Unavailable if a SQLite file that was made before is missing or empty."""
    if _marker(path).exists():
        state = "missing" if not path.exists() else "empty" if path.stat().st_size == 0 else ""
        if state:
            raise Unavailable(
                f"{path.name} is {state}, and operations were stored in it: restore a "
                f"backup, or delete {_marker(path).name} to start without operations",
                reason="DATABASE",
            )


def _file(url: str) -> Path | None:
    """Return the file of a SQLite database; None for another kind."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _marker(path: Path) -> Path:
    return path.with_name(path.name + MADE)


def _storage(storage: Storage | Path) -> Storage:
    return FileStorage(storage) if isinstance(storage, Path) else storage


def _default(storage: Storage) -> str:
    """Return the URL of a repository's own database; empty for a bucket."""
    return _own_url(storage.root) if isinstance(storage, FileStorage) else ""


def _own_url(root: Path) -> str:
    return f"sqlite:///{root.absolute() / 'operations.sqlite'}"
