"""Temporary PostgreSQL cluster; tests are skipped if PostgreSQL is not installed."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

SUPERUSER = "topwork"
TIMEOUT = 60
"""Timeout in seconds of a start or a stop."""

# Safe for a temporary cluster: only a power cut loses data then, not a killed server.
FAST = ("fsync=off", "full_page_writes=off")


class Postgres:
    """A cluster that listens only on a Unix socket in its directory."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        self._binaries = binaries
        self._directory = directory
        self._numbers = itertools.count(1)

    def create(self) -> None:
        """Create the cluster's files."""
        self._call(
            "initdb", "--auth=trust", f"--username={SUPERUSER}", "--no-sync", "--locale=C",
            "--encoding=UTF8",
        )  # fmt: skip

    def start(self) -> None:
        """Start the server, and return when it accepts connections."""
        settings = (
            *FAST, "listen_addresses=", f"unix_socket_directories={self._directory}",
        )  # fmt: skip
        options = " ".join(f"-c {setting}" for setting in settings)
        self._call("pg_ctl", "start", "--wait", f"--log={self._directory / 'log'}", "-o", options)

    def stop(self) -> None:
        """Stop the server at once, as in a crash; connections break."""
        self._call("pg_ctl", "stop", "--mode=immediate")

    def url(self, database: str, user: str = SUPERUSER) -> str:
        """Return the URL of a database, whether or not it exists."""
        return f"postgresql://{user}@/{database}?host={self._directory}"

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        database = f"test{next(self._numbers)}"
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        return self.url(database)

    def execute(self, statement: sql.Composed | sql.SQL) -> None:
        """Execute a statement outside of a transaction, in the database postgres."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _call(self, binary: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root.
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = _unprivileged()
            as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        # A file, since the server inherits it: a pipe would stay open after pg_ctl exits.
        with (self._directory / "errors").open("w+") as errors:
            ended = subprocess.run(
                [str(self._binaries / binary), *arguments, "-D", str(self._directory / "data")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self._directory,
                check=False,
                timeout=TIMEOUT,
                **as_user,
            )
            errors.seek(0)
            assert ended.returncode == 0, f"{binary}: {errors.read()}"


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """Yield a running cluster; skip the test if PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: no pg_ctl on PATH or in /usr/lib/postgresql")
    # Not in pytest's folders: only their owner may enter them, and a socket's path has at most
    # 107 characters.
    with tempfile.TemporaryDirectory(prefix="topwork-postgres-") as name:
        directory = Path(name)
        if os.geteuid() == 0:
            os.chown(directory, _unprivileged().pw_uid, _unprivileged().pw_gid)
        cluster = Postgres(binaries, directory)
        cluster.create()
        try:
            cluster.start()
            yield cluster
        finally:
            with contextlib.suppress(AssertionError):  # a test stopped it
                cluster.stop()


def _binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL, or None."""
    if (on_path := shutil.which("pg_ctl")) is not None:
        return Path(on_path).resolve().parent
    packaged = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    installed = sorted(packaged, key=lambda path: float(path.parts[-3]))
    return installed[-1].parent if installed else None


def _unprivileged() -> pwd.struct_passwd:
    """Return the user account under which root runs PostgreSQL."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
