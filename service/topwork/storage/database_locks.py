"""Locks as advisory locks of PostgreSQL sessions, for writers on any host.

A lock belongs to a connection of its own, and ends with it. A pooler such as PgBouncer has to pool
sessions: one that pools transactions would run a lock's statements in other sessions.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import ArgumentError

from topwork.storage.file_locks import FileLocks
from topwork.storage.locks import LockLost, Locks

APPLICATION = "topwork"

SPARE = 2
"""Raising it opens fewer connections when a process locks often, but keeps more of them open."""

WAIT_SLICE_SECONDS = 10
"""Raising it asks less often for a lock that another holds.

A statement that waits holds a snapshot, and the database removes no dead rows younger than that;
so a wait is a series of statements.
"""

CONNECT_SECONDS = 10
"""Raising it waits longer for a server that does not answer."""

LOST_SECONDS = 20
"""Raising it lets a process believe longer that it holds a lock whose server it cannot reach.

It has to be less than the time after which the server frees the lock of a silent host: 50 s.
"""

CLIENT_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": LOST_SECONDS * 1000,
}
"""Parameters of a connection, so that the client notices a dead server; in s, and ms."""

SERVER_SETTINGS = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": f"{WAIT_SLICE_SECONDS}s",
}
"""Settings of a session: a dead host's locks are free after 50 s, and no timeout ends a live one's.

Those that the server's version lacks are left out.
"""


class DatabaseLocks:
    """Locks between the processes that use one PostgreSQL database; see ``Locks``."""

    def __init__(self, url: str, directory: str = "") -> None:
        """Take the database's URL; locks of another ``directory`` are other locks."""
        self._sessions = _Sessions(url)
        self._directory = directory

    @contextmanager
    def locked(self, name: str, *, shared: bool = False) -> Iterator[Callable[[], None]]:
        """Hold a lock, exclusively or ``shared``; see ``Locks``."""
        lease = self._lease(name, lambda: None, shared=shared)
        assert lease is not None, "a lease that may wait is always granted"

        def check() -> None:
            if not lease.held():
                raise LockLost("the connection that held a lock in the database was lost")

        try:
            yield check
        finally:
            lease.release()

    def claim(self, name: str, *, on_wait: Callable[[], None] = lambda: None) -> DatabaseLease:
        """Hold a name until the process ends; waits, after ``on_wait()``."""
        lease = self._lease(name, on_wait)
        assert lease is not None, "a lease that may wait is always granted"
        return lease

    def try_claim(self, name: str) -> DatabaseLease | None:
        """Hold a name if nobody does; None: another process holds it."""
        return self._lease(name, None)

    def _lease(
        self, name: str, on_wait: Callable[[], None] | None, *, shared: bool = False
    ) -> DatabaseLease | None:
        lock = _Lock(_key(self._directory, name), shared=shared)
        connection = self._sessions.take_after(lock.attempt)
        try:
            if not lock.acquired:
                if on_wait is None:
                    self._sessions.put_back(connection)
                    return None
                on_wait()
                with self._sessions.errors():
                    lock.wait(connection)
        except BaseException:
            connection.close()
            raise
        return DatabaseLease(self._sessions, connection, lock)


class DatabaseLease:
    """A lock that a connection holds; see ``Lease``."""

    def __init__(self, sessions: _Sessions, connection: _Connection, lock: _Lock) -> None:
        self._sessions = sessions
        self._connection: _Connection | None = connection
        self._lock = lock
        self._process = os.getpid()

    def held(self) -> bool:
        """Return True unless the lease was released, or its connection lost.

        Asks the server: takes as long as a query, and up to LOST_SECONDS if it does not answer.
        """
        connection = self._connection
        if connection is None or self._process != os.getpid():
            return False
        try:
            row = connection.execute("SELECT pg_backend_pid()").fetchone()
        except psycopg.Error:
            return False
        # Another process id: a pooler gave the lock's session to somebody else.
        return row is not None and row[0] == connection.info.backend_pid

    def release(self) -> None:
        """Unlock; a connection that was lost is closed."""
        connection, self._connection = self._connection, None
        if connection is None or self._process != os.getpid():
            return
        try:
            released = self._lock.release(connection)
        except BaseException as failed:
            connection.close()  # which unlocks
            if isinstance(failed, psycopg.Error):
                return
            raise
        if released:
            self._sessions.put_back(connection)
        else:
            connection.close()


def locks_of(database_url: str, directory: str = "") -> Locks | None:
    """Return the locks that belong to a database of operations; None if there is no database.

    PostgreSQL has locks for all hosts. Those of a SQLite file are files beside it, for one host.
    Locks of another ``directory`` are other locks. Nothing is connected yet.
    """
    if not database_url:
        return None
    if database_url.startswith("sqlite:///"):
        path = Path(database_url.removeprefix("sqlite:///")).absolute()
        # A hash, for a URL may be long, and have a password.
        suffix = f"-{hashlib.sha256(directory.encode()).hexdigest()[:16]}" if directory else ""
        return FileLocks(path.with_name(f"{path.name}.locks{suffix}"))
    return DatabaseLocks(database_url, directory)


_Connection = psycopg.Connection[tuple[Any, ...]]


class _Lock:
    """The statements of one lock."""

    def __init__(self, key: int, *, shared: bool) -> None:
        self._key = key
        self._suffix = "_shared" if shared else ""
        self.acquired = False

    def attempt(self, connection: _Connection) -> None:
        """Lock without waiting; set ``acquired``."""
        self.acquired = self._call(connection, "pg_try_advisory_lock") is True

    def wait(self, connection: _Connection) -> None:
        """Lock, for as long as it takes."""
        while True:
            with suppress(psycopg.errors.LockNotAvailable):  # see WAIT_SLICE_SECONDS
                self._call(connection, "pg_advisory_lock")
                return

    def release(self, connection: _Connection) -> bool:
        """Unlock; return False if the session did not hold it."""
        return self._call(connection, "pg_advisory_unlock") is True

    def _call(self, connection: _Connection, function: str) -> Any:
        statement = f"SELECT {function}{self._suffix}({self._key})"
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None, "a SELECT of a function returns one row"
        return row[0]


class _Sessions:
    """Connections of this process, without a limit: nested locks would wait for each other."""

    def __init__(self, url: str) -> None:
        # As DBOS reads it: a URL may have SQLAlchemy's own form.
        try:
            parsed = make_url(url).set(drivername="postgresql+psycopg")
        except ArgumentError:
            raise LockLost("the URL of the database of operations cannot be read") from None
        dialect: Any = PGDialect_psycopg
        _, self._parameters = dialect().create_connect_args(parsed)
        self._password = str(self._parameters.get("password") or "")
        self._spare: list[_Connection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._spare)
        _ALL.add(self)

    def take_after(self, use: Callable[[_Connection], None]) -> _Connection:
        """Return a connection for which ``use`` succeeded; a new one unless a spare one works."""
        while (spare := self._take_spare()) is not None:
            try:
                use(spare)
            except BaseException as failed:
                spare.close()
                if not isinstance(failed, psycopg.Error):
                    raise
            else:
                return spare
        with self.errors():
            connection = self._connect()
            try:
                use(connection)
            except BaseException:
                connection.close()
                raise
            return connection

    def put_back(self, connection: _Connection) -> None:
        """Keep a connection that holds no lock, or close it."""
        with self._lock:
            if len(self._spare) < SPARE:
                self._spare.append(connection)
                return
        connection.close()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Convert the errors of a database to LockLost, without the password."""
        try:
            yield
        except psycopg.Error as failed:
            cause = " ".join(str(failed).split())
            if self._password:
                cause = cause.replace(self._password, "***")
            text = f"the locks in the database of operations cannot be reached now: {cause}"
            raise LockLost(text) from None

    def forget(self) -> None:
        """Drop the connections of the parent process, after a fork."""
        self._spare.clear()
        self._lock = threading.Lock()

    def _take_spare(self) -> _Connection | None:
        with self._lock:
            return self._spare.pop() if self._spare else None

    def _connect(self) -> _Connection:
        defaults = {"connect_timeout": CONNECT_SECONDS, "application_name": f"{APPLICATION} locks"}
        parameters = defaults | CLIENT_KEEPALIVES | self._parameters
        connection: _Connection = psycopg.connect(
            **parameters, autocommit=True, prepare_threshold=None
        )
        with _OPEN_LOCK:
            _OPEN.add(connection)
        try:
            connection.execute(
                "SELECT set_config(name, setting, false)"
                " FROM unnest(%s::text[], %s::text[]) AS wanted (name, setting)"
                " WHERE EXISTS (SELECT FROM pg_settings WHERE pg_settings.name = wanted.name)",
                [[*SERVER_SETTINGS], [*SERVER_SETTINGS.values()]],
                prepare=False,
            )
        except BaseException:
            connection.close()
            raise
        return connection


def _key(directory: str, name: str) -> int:
    """Return the signed 64-bit key of a lock.

    Two names with one key would wait for each other, which 2**32 locks make likely.
    """
    text = f"{APPLICATION}\0{directory}\0{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


def _close(connections: list[_Connection]) -> None:
    for connection in connections:
        connection.close()


_ALL: weakref.WeakSet[_Sessions] = weakref.WeakSet()
_OPEN: weakref.WeakSet[_Connection] = weakref.WeakSet()
_OPEN_LOCK = threading.Lock()


def _after_fork() -> None:
    """Close the sockets of the parent process, which would keep its locks when it is killed.

    Nothing is sent to the server: the sessions stay the parent's.
    """
    global _OPEN_LOCK  # noqa: PLW0603  # another thread may have held it at the fork
    _OPEN_LOCK = threading.Lock()
    for connection in list(_OPEN):
        with suppress(OSError, psycopg.Error):
            os.close(connection.fileno())
    _OPEN.clear()
    for sessions in list(_ALL):
        sessions.forget()


os.register_at_fork(after_in_child=_after_fork)
