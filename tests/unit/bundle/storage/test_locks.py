"""Contract of ``Locks``, for lock files and for advisory locks of PostgreSQL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from support import postgres
from support.postgres import Postgres

from topwork.bundle.storage import database_locks
from topwork.bundle.storage.database_locks import DatabaseLocks, locks_of
from topwork.bundle.storage.file_locks import FileLocks
from topwork.bundle.storage.locks import LockLost, Locks

PATIENCE = 60.0
"""Seconds after which a test fails that waits for a lock."""

BRIEFLY = 0.3
"""Seconds for which a thread has to wait for a lock."""

NAMES = (
    "",
    ".",
    "..",
    "a/b",
    "a%2Fb",
    "../../out",
    "host:1 (a)",
    "hôte",
    "a\0b",
    "x" * 300,
    "\udc80",
)

HOLD = (
    "import sys\n"
    "from topwork.bundle.storage.database_locks import locks_of\n"
    "url, use, name = sys.argv[1:]\n"
    "locks = locks_of(url)\n"
    "def hold():\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
    "if use == 'claim':\n"
    "    lease = locks.claim(name)\n"
    "    hold()\n"
    "else:\n"
    "    with locks.locked(name, shared=use == 'shared'):\n"
    "        hold()\n"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """Yield a PostgreSQL cluster."""
    with postgres.running() as made:
        yield made


@pytest.fixture(params=["files", "database"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database of operations that has the locks."""
    if request.param == "files":
        return f"sqlite:///{tmp_path / 'operations.sqlite'}"
    database: str = request.getfixturevalue("cluster").new_database()
    return database


@pytest.fixture
def locks(url: str) -> Locks:
    """Return the locks under test."""
    made = locks_of(url)
    assert made is not None
    return made


@contextmanager
def holder(url: str, use: str, name: str = "m") -> Iterator[subprocess.Popen[str]]:
    """Hold a lock in another process while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, url, use, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


class Waiter:
    """A thread that takes a lock, and holds it until ``end``."""

    def __init__(self, locks: Locks, name: str = "m", *, shared: bool = False) -> None:
        self.held = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(locks, name, shared), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Release the lock, once it is held."""
        self._end.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self, locks: Locks, name: str, shared: bool) -> None:  # of a thread
        with locks.locked(name, shared=shared):
            self.held.set()
            self._end.wait(PATIENCE)


def assert_waits(locks: Locks, first: bool = False, second: bool = False) -> None:
    """Check that a lock waits for one that is held, and is acquired then; True: shared ones."""
    with locks.locked("m", shared=first):
        waiter = Waiter(locks, shared=second)
        assert not waiter.held.wait(BRIEFLY)
    assert waiter.held.wait(PATIENCE)
    waiter.end()


@pytest.mark.parametrize(
    ("first", "second"), [(False, False), (True, False), (False, True)], ids=str
)
def test_exclusive_lock_waits_for_others(locks: Locks, first: bool, second: bool) -> None:
    """Threads of one process wait for each other, unless both locks are shared."""
    assert_waits(locks, first, second)


def test_shared_locks_are_held_together(locks: Locks, url: str) -> None:
    """Threads and processes hold them at the same time."""
    with locks.locked("m", shared=True), holder(url, "shared"):
        waiter = Waiter(locks, shared=True)
        assert waiter.held.wait(PATIENCE)
        waiter.end()


def test_locks_of_different_names_do_not_wait(locks: Locks) -> None:
    """Any string is a name of its own, also a part of another."""
    with ExitStack() as stack:
        leases = []
        for name in NAMES:
            stack.enter_context(locks.locked(name))
            leases.append(locks.try_claim(f"{name}~"))
        assert all(lease is not None and lease.held() for lease in leases)
        for name in NAMES:
            assert locks.try_claim(name) is None
    for lease in leases:
        assert lease is not None
        lease.release()


def test_nested_locks_of_many_threads_do_not_deadlock(locks: Locks) -> None:
    """Each of 12 threads holds three locks at a time."""
    counted: list[int] = []

    def count(number: int) -> None:
        for _ in range(5):
            with (
                locks.locked("naming", shared=True),
                locks.locked(f"model-{number % 3}"),
                locks.locked("", shared=number % 2 == 0),
            ):
                counted.append(number)

    threads = [threading.Thread(target=count, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(counted) == 60


def test_lock_is_free_after_an_error_in_the_block(locks: Locks) -> None:
    """The error is not converted."""
    with pytest.raises(ZeroDivisionError), locks.locked("m"):
        raise ZeroDivisionError
    lease = locks.try_claim("m")
    assert lease is not None
    lease.release()


@pytest.mark.parametrize("use", ["exclusive", "shared", "claim"])
def test_killed_process_frees_its_lock(locks: Locks, url: str, use: str) -> None:
    """SIGKILL of the process that holds a lock lets the one that waits go on."""
    with holder(url, use) as process:
        assert locks.try_claim("m") is None
        waiter = Waiter(locks)
        assert not waiter.held.wait(BRIEFLY)
        process.kill()
        assert waiter.held.wait(PATIENCE)
    waiter.end()


def test_killed_process_with_a_forked_child_frees_its_lock(url: str, locks: Locks) -> None:
    """A child that outlives its parent does not hold the parent's locks, if they are connections.

    Lock files pass on to a forked child, as ``flock`` has it.
    """
    if isinstance(locks, FileLocks):
        pytest.skip("a forked child has the parent's lock files")
    forking = HOLD.replace(
        "def hold():\n",
        "import os, time\n"
        "def hold():\n"
        "    child = os.fork()\n"
        "    if not child: time.sleep(60); os._exit(0)\n"
        "    print(child)\n",
    )
    with subprocess.Popen(
        [sys.executable, "-c", forking, url, "claim", "m"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "held\n"
        assert locks.try_claim("m") is None  # the child closed nothing of its parent's
        process.kill()
        waiter = Waiter(locks)
        try:
            assert waiter.held.wait(BRIEFLY * 30)
        finally:
            os.kill(child, signal.SIGKILL)
        waiter.end()


def test_process_that_waits_and_is_killed_does_not_get_the_lock(locks: Locks, url: str) -> None:
    """The next in the queue gets it."""
    with locks.locked("m"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, url, "exclusive", "m"], stdin=subprocess.PIPE
        )
        with process:
            process.kill()
    lease = locks.claim("m")
    assert lease.held()
    lease.release()


def test_claim_waits_for_the_holder(locks: Locks) -> None:
    """``on_wait`` is called once before it waits, and not if the name is free."""
    called: list[str] = []
    first = locks.claim("m", on_wait=lambda: called.append("first"))
    assert called == []
    waits = threading.Event()
    claimed = []
    thread = threading.Thread(
        target=lambda: claimed.append(locks.claim("m", on_wait=waits.set)), daemon=True
    )
    thread.start()
    assert waits.wait(PATIENCE)
    assert claimed == []
    first.release()
    thread.join(PATIENCE)
    assert claimed[0].held()
    assert not first.held()
    claimed[0].release()


def test_claim_and_locked_exclude_each_other(locks: Locks) -> None:
    """A lease is an exclusive lock of its name."""
    lease = locks.try_claim("m")
    assert lease is not None
    waiter = Waiter(locks, shared=True)
    assert not waiter.held.wait(BRIEFLY)
    lease.release()
    assert waiter.held.wait(PATIENCE)
    assert locks.try_claim("m") is None
    waiter.end()


def test_lease_may_be_released_twice(locks: Locks) -> None:
    """The second time does nothing, not even to the name's next holder."""
    lease = locks.claim("m")
    lease.release()
    second = locks.claim("m")
    lease.release()
    assert second.held()
    second.release()


def test_locks_of_two_directories_do_not_wait(url: str, locks: Locks) -> None:
    """They have the same names for different things."""
    others = locks_of(url, "s3://bucket/prefix")
    assert others is not None
    with locks.locked("m"), others.locked("m"):
        same = locks_of(url, "s3://bucket/prefix")
        assert same is not None
        assert same.try_claim("m") is None


def test_locks_of_no_database() -> None:
    """Without a URL there are no locks."""
    assert locks_of("") is None


@pytest.fixture
def database(cluster: Postgres) -> str:
    """Return the URL of an empty PostgreSQL database."""
    return cluster.new_database()


def terminate(url: str, *, waiting: bool = False) -> int:
    """End connections to a database, as a restart does; return their number."""
    with psycopg.connect(url, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (wait_event = 'advisory' OR NOT %s)",
            [waiting],
        )
        return ended.rowcount


def test_lost_connection_ends_lease_and_lock(database: str) -> None:
    """The holder learns it, and another process gets the name."""
    locks = DatabaseLocks(database)
    with locks.locked("locked") as check:
        lease = locks.claim("claimed")
        check()
        assert lease.held()
        terminate(database)
        with pytest.raises(LockLost, match="connection that held a lock") as caught:
            check()
        assert caught.value.strerror == str(caught.value)
        assert not lease.held()
        for name in ("locked", "claimed"):
            other = locks.try_claim(name)
            assert other is not None
            other.release()
    lease.release()


def test_spare_connection_that_was_lost_is_replaced(database: str) -> None:
    """A restart of the database between two locks is not noticed."""
    locks = DatabaseLocks(database)
    with locks.locked("a"), locks.locked("b"):
        pass
    terminate(database)
    with locks.locked("a") as check:
        check()


def test_lost_connection_of_a_waiter_is_an_error(database: str) -> None:
    """The waiter gets OSError, not the lock."""
    locks = DatabaseLocks(database)
    errors: list[OSError] = []

    def wait() -> None:
        try:
            locks.claim("m").release()
        except OSError as error:
            errors.append(error)

    with locks.locked("m") as check:
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while not terminate(database, waiting=True):
            assert time.monotonic() < deadline
        thread.join(PATIENCE)
        check()
    assert "cannot be reached now" in str(errors[0])


def test_wait_is_a_series_of_statements(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement waits longer than a slice; the lock is acquired in a later one."""
    monkeypatch.setitem(database_locks.SERVER_SETTINGS, "lock_timeout", "20ms")
    locks = DatabaseLocks(database)
    assert_waits(locks)


def test_wait_ignores_the_statement_timeout_of_the_role(cluster: Postgres, database: str) -> None:
    """A timeout that an administrator set for all statements ends no wait."""
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    assert isinstance(name, str)
    cluster.execute(
        sql.SQL("ALTER DATABASE {} SET statement_timeout = '50ms'").format(sql.Identifier(name))
    )
    locks = DatabaseLocks(database)
    assert_waits(locks)


def test_few_connections_stay_open(database: str) -> None:
    """Locks one after another share a connection; of nested ones SPARE stay."""
    locks = DatabaseLocks(database)
    for _ in range(5):
        with locks.locked("m"):
            pass
    assert len(locks._sessions._spare) == 1
    with ExitStack() as stack:
        for number in range(6):
            stack.enter_context(locks.locked(f"{number}"))
    assert len(locks._sessions._spare) == database_locks.SPARE


def test_server_frees_locks_of_dead_hosts_within_a_minute() -> None:
    """The holder knows by then that it lost them."""
    settings = {
        name: int(value)
        for name, value in database_locks.SERVER_SETTINGS.items()
        if name.startswith("tcp")
    }
    silent = (
        settings["tcp_keepalives_idle"]
        + settings["tcp_keepalives_interval"] * settings["tcp_keepalives_count"]
    )
    assert database_locks.LOST_SECONDS < silent < 60


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:1/topwork",
        "postgresql://me:secret@127.0.0.1:1/topwork?no_such_option=1",
        "postgresql://me:secret@127.0.0.1:1/topwork?sslmode=secret",  # which libpq repeats
        "postgresql://me:secret@nowhere.invalid/topwork",
    ],
)
def test_unreachable_database_is_an_error_without_the_password(url: str) -> None:
    """All methods raise LockLost with one sentence."""
    locks = DatabaseLocks(url)
    calls: tuple[Callable[[], object], ...] = (
        lambda: locks.claim("m"),
        lambda: locks.try_claim("m"),
        lambda: _lock(locks),
    )
    for call in calls:
        with pytest.raises(LockLost, match="locks in the database of operations") as caught:
            call()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_url_that_cannot_be_read_is_an_error_without_the_password() -> None:
    """It is not repeated."""
    with pytest.raises(LockLost, match="cannot be read") as caught:
        DatabaseLocks("postgresql//me:secret@host")
    assert "secret" not in str(caught.value)


def _lock(locks: Locks) -> None:
    with locks.locked("m"):
        raise AssertionError("locked")


def test_lock_file_that_was_deleted_is_lost(tmp_path: Path) -> None:
    """The check raises LockLost, and the lease is not held."""
    locks = FileLocks(tmp_path)
    lease = locks.claim("claimed")
    with locks.locked("m") as check:
        check()
        for name in ("m", "claimed"):
            locks.path(name).unlink()
        with pytest.raises(LockLost, match="was deleted"):
            check()
    assert not lease.held()
    lease.release()


@pytest.mark.parametrize("name", NAMES)
def test_lock_file_of_any_name_is_in_the_directory(tmp_path: Path, name: str) -> None:
    """No name leads out of the directory."""
    directory = tmp_path / "locks"
    FileLocks(directory).claim(name).release()
    assert [path.parent for path in tmp_path.rglob("*.lock")] == [directory]
