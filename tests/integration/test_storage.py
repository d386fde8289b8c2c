"""A server with a full or read-only disk or a lost database: errors, serving and recovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from support import disks, servers, stored, tiny
from support.pictures import picture, pictures
from support.servers import Running, failure

from topwork import CallFailed, Client, result
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.changes.database import damage
from topwork.cli.maintain import gc
from topwork.runtime.supervisor import GAVE_UP

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]

TO_THE_LAST_BYTE = {"min_free_bytes": -(2**30), "min_free_inodes": -(2**30)}
"""Limits that let the server fill the disk instead of refusing uploads before."""

FULL = {"bytes": disks.full, "inodes": disks.without_inodes}
"""Full disks: without bytes, and without inodes."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory with its own small file system."""
    with disks.small(tmp_path / "disk", megabytes=16) as directory:
        yield directory


def ended_of(client: Client, accepted: operations_pb2.Operation) -> operations_pb2.Operation:
    """Wait for an operation and return it."""
    *_, last = client.watch(accepted.name)
    return last


def serves(client: Client, revision: int) -> bool:
    """Return whether Classify answers with that revision."""
    return client.classify("colours", [picture("blue", 60)]).revision == revision


def code_and_reason(error: CallFailed) -> tuple[str, str]:
    """Return code and reason."""
    return error.code, error.reason


def errors_in(repository: Repository) -> list[str]:
    """Return the texts of errors that fsck finds."""
    return [problem.text for problem in check(repository) if problem.severity == "error"]


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_refuses_uploads_and_rollbacks(what: str, disk: Path) -> None:
    """AddClass and Rollback are UNAVAILABLE with STORAGE until there is space; Classify works."""
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, limits=TO_THE_LAST_BYTE)
    with running as server, Client(server.address) as client:
        result(ended_of(client, client.rename_class("colours", "blue", "azure")))
        with FULL[what](disk):
            error = failure(lambda: client.add_class("colours", "violet", VIOLETS))
            assert code_and_reason(error) == ("UNAVAILABLE", "STORAGE")
            assert "No space left on device" in str(error)
            assert code_and_reason(failure(lambda: client.rollback("colours"))) == (
                "UNAVAILABLE",
                "STORAGE",
            )
            assert serves(client, 2)
            assert errors_in(repository) == []
        response = result(ended_of(client, client.add_class("colours", "violet", VIOLETS)))
        assert response.revision.revision == 3
        assert client.rollback("colours").serving_revision.revision == 2
    assert errors_in(repository) == []


@pytest.mark.parametrize("what", FULL)
def test_gc_recovers_from_a_full_disk(what: str, disk: Path) -> None:
    """Without a free byte or inode gc can delete old revisions, then changes succeed again.

    Images of waiting operations stay: gc can read the database although it cannot be written.
    """
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, limits=TO_THE_LAST_BYTE)
    with running as server, Client(server.address) as client:
        for before, after in ("blue", "azure"), ("azure", "navy"), ("navy", "blue"):
            result(ended_of(client, client.rename_class("colours", before, after)))
        server.stop()
    running = servers.running(repository.root, worker=False, limits=TO_THE_LAST_BYTE)
    with running as server, Client(server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        server.stop()
    uploaded = repository.stored("images").keys()
    stored.grow_old(repository)
    with FULL[what](disk):
        gc.main([str(repository.root), "--keep", "1"], standalone_mode=False)
        assert repository.revisions("colours") == [4]
        assert repository.stored("images").keys() == uploaded
        assert errors_in(repository) == []
        assert damage(repository.root) == ""
        running = servers.running(repository.root, limits=TO_THE_LAST_BYTE)
        with running as server, Client(server.address) as client:
            assert result(ended_of(client, accepted)).revision.revision == 5


@pytest.mark.parametrize("what", FULL)
def test_uploads_are_refused_before_the_disk_is_full(what: str, tmp_path: Path) -> None:
    """With fewer free bytes or inodes than the minimum, uploads are RESOURCE_EXHAUSTED."""
    with disks.small(tmp_path / "disk", megabytes=16, inodes=500) as disk:
        repository = tiny.repository(disk / "repository")
        least = {"min_free_bytes": 0, "min_free_inodes": 0}
        least[f"min_free_{what}"] = 15 * 2**20 if what == "bytes" else 400
        running = servers.running(repository.root, worker=False, limits=least)
        with running as server, Client(server.address) as client:
            client.add_class("colours", "violet", VIOLETS[:6])
            for number in range(100):
                (disk / str(number)).write_bytes(bytes(20_000))
            error = failure(lambda: client.add_class("colours", "violet", VIOLETS))
            assert code_and_reason(error) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
            assert what in str(error)


@pytest.mark.parametrize("what", FULL)
def test_an_operation_waits_until_a_full_disk_has_space(what: str, disk: Path) -> None:
    """An operation acknowledged before the disk is full waits for free space and is done once."""
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, worker=False, limits=TO_THE_LAST_BYTE)
    with running as first, Client(first.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
    server = Running(servers.command(repository.root), repository.root, forked=True)
    try:
        with Client(server.address) as client:
            with FULL[what](disk):
                server.close()
                server = Running(servers.command(repository.root), repository.root, forked=True)
                died = server.log_entry("worker died")
                assert died["exit_code"] == GAVE_UP
                why = server.log_entry("worker gives up")["error"]
                assert "full" in why or "unable to open" in why or "No space left" in why
                with Client(server.address) as again:
                    assert serves(again, 1)
            with Client(server.address) as again:
                assert result(ended_of(again, accepted)).revision.revision == 2
                assert list(again.model("colours").revisions) == [1, 2]
    finally:
        server.close()
    assert errors_in(repository) == []


def test_changes_fail_while_the_repository_is_read_only(colours: Repository) -> None:
    """Changes fail with STORAGE while the repository is read-only, then succeed; Classify works."""
    root = colours.root
    with servers.running(root) as server, Client(server.address) as client:
        result(ended_of(client, client.add_class("colours", "violet", VIOLETS)))
        with disks.read_only(root / "images", root / "exemplars", root / "models"):
            whites = [(f"{n}.png", content) for n, content in enumerate(pictures("white", 12))]
            error = failure(lambda: client.add_class("colours", "white", whites))
            assert code_and_reason(error) == ("UNAVAILABLE", "STORAGE")
            assert "Read-only file system" in str(error)
            assert str(root) not in str(error)
            failed = ended_of(client, client.rename_class("colours", "blue", "azure"))
            assert code_and_reason(failure(lambda: result(failed))) == ("UNAVAILABLE", "STORAGE")
            assert code_and_reason(failure(lambda: client.rollback("colours"))) == (
                "UNAVAILABLE",
                "STORAGE",
            )
            assert serves(client, 2)
        renamed = ended_of(client, client.rename_class("colours", "blue", "azure"))
        assert result(renamed).revision.revision == 3
        assert serves(client, 3)
    assert errors_in(colours) == []


def test_a_server_starts_on_a_read_only_repository(colours: Repository) -> None:
    """The server serves and refuses changes; once the repository is writable they succeed."""
    with disks.read_only(colours.root):
        server = Running(servers.command(colours.root), colours.root, forked=True)
        try:
            with Client(server.address) as client:
                assert serves(client, 1)
                assert server.log_entry("worker died")["exit_code"] == GAVE_UP
                error = failure(lambda: client.rename_class("colours", "blue", "azure"))
                assert error.code == "UNAVAILABLE"
                assert error.reason in {"DATABASE", "STORAGE"}
        except BaseException:
            server.close()
            raise
    try:
        with Client(server.address) as client:
            renamed = ended_of(client, client.rename_class("colours", "blue", "azure"))
            assert result(renamed).revision.revision == 2
    finally:
        server.close()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("empty", "operations.sqlite is empty, and operations were stored in it"),
        ("missing", "operations.sqlite is missing, and operations were stored in it"),
        ("garbage", "file is not a database"),
    ],
)
def test_a_lost_database_is_not_replaced(harm: str, why: str, colours: Repository) -> None:
    """The server serves and refuses changes, the worker gives up, gc deletes nothing.

    After the database is restored from a backup its operations continue.
    """
    database = colours.root / "operations.sqlite"
    with servers.running(colours.root, worker=False) as server, Client(server.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
        server.stop()
    backup = database.read_bytes()
    harms = {"empty": b"", "garbage": b"garbage " * 1000}
    database.unlink()
    if harm in harms:
        database.write_bytes(harms[harm])
    uploaded = colours.stored("images").keys()
    stored.grow_old(colours)
    server = Running(servers.command(colours.root), colours.root, forked=True)
    try:
        with Client(server.address) as client:
            assert serves(client, 1)
            error = failure(lambda: client.rename_class("colours", "blue", "azure"))
            assert code_and_reason(error) == ("UNAVAILABLE", "DATABASE")
            assert why in str(error)
            assert why in server.log_entry("no database")["error"]
            assert why in server.log_entry("worker gives up")["error"]
    finally:
        server.close()
    assert damage(colours.root).startswith(why)
    with pytest.raises(SystemExit) as ended:
        gc.main([str(colours.root)], standalone_mode=False)
    assert ended.value.code == 1
    assert colours.stored("images").keys() == uploaded
    database.write_bytes(backup)
    with servers.running(colours.root) as server, Client(server.address) as client:
        assert result(ended_of(client, accepted)).revision.revision == 2


def test_a_new_database_is_made_after_its_marker_is_deleted(colours: Repository) -> None:
    """After the marker file of the lost database is deleted, a new database is created."""
    with servers.running(colours.root, worker=False) as server:
        server.stop()
    database = colours.root / "operations.sqlite"
    database.write_bytes(b"")
    database.with_name("operations.sqlite.made").unlink()
    with servers.running(colours.root) as server, Client(server.address) as client:
        renamed = ended_of(client, client.rename_class("colours", "blue", "azure"))
        assert result(renamed).revision.revision == 2
