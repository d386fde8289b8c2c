"""Places of a soak's repository: a directory with SQLite, or a bucket with PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from support import object_stores, postgres
from support.object_stores import S3Server

from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.storage.files import ABANDONED_AFTER, TEMPORARY
from topwork.storage.location import Location, ObjectCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The location of a repository, the database of its operations, and what can be killed."""

    location: Location
    cache: Path
    database: str = ""
    """URL; empty: SQLite in the repository."""
    kill_store: Callable[[], None] | None = None
    """Kills the object store and starts it again; None: there is none."""
    steady: threading.RLock = field(default_factory=threading.RLock)
    """Held while the test itself reads the repository: the store is not killed meanwhile."""

    def open(self) -> Repository:
        """Return the repository."""
        cache = ObjectCache(directory=self.cache)
        return open_repository(self.location, database=self.database, cache=cache, writes=True)

    def options(self) -> list[str]:
        """Return the options of a server."""
        options = ["--repository", str(self.location), "--cache-directory", str(self.cache)]
        return [*options, "--database", self.database] if self.database else options

    def age_temporary_files(self) -> int:
        """Make temporary files old enough to be deleted, and return their number."""
        if not isinstance(self.location, Path):
            return 0
        past = time.time() - 2 * ABANDONED_AFTER
        found = [*self.location.rglob(f"{TEMPORARY}*")]
        for path in found:
            os.utime(path, (past, past))
        return len(found)

    def database_damage(self) -> str:
        """Return the damage of the SQLite file; empty if it is intact, or there is none."""
        if not isinstance(self.location, Path):
            return ""
        with contextlib.closing(sqlite3.connect(self.location / "operations.sqlite")) as database:
            (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
        return "" if integrity == "ok" else f"operations.sqlite: {integrity}"


@contextlib.contextmanager
def files(root: Path) -> Iterator[Place]:
    """Yield a directory."""
    yield Place(location=root / "repository", cache=root / "cache")


@contextlib.contextmanager
def bucket(root: Path) -> Iterator[Place]:
    """Yield a bucket of a SeaweedFS that can be killed, with a new PostgreSQL."""
    directory = root / "bucket"
    directory.mkdir()
    running = ExitStack()

    def start(port: int | None = None) -> S3Server:
        return running.enter_context(object_stores.seaweedfs(directory, port))

    with postgres.running() as database, running:
        server = start()
        os.environ.update(server.environment())

        def kill() -> None:
            with place.steady:
                running.close()
                start(server.port)

        place = Place(
            location=server.new_url(),
            cache=root / "cache",
            database=database.url("postgres"),
            kill_store=kill,
        )
        yield place


PLACES: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "files": files,
    "bucket": bucket,
}
