"""A server whose disk is full or read-only: it says so, serves on, and works when it is well."""

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
"""Limits with which the disk itself says that it is full, not the server beforehand."""

FULL = {"bytes": disks.full, "inodes": disks.without_inodes}
"""Ways in which a disk has no room."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory with a small file system of its own."""
    with disks.small(tmp_path / "disk", megabytes=16) as directory:
        yield directory


def ended_of(client: Client, accepted: operations_pb2.Operation) -> operations_pb2.Operation:
    """Return the operation once it is finished."""
    *_, last = client.watch(accepted.name)
    return last


def serves(client: Client, revision: int) -> bool:
    """Return whether Classify is answered by that revision."""
    return client.classify("colours", [picture("blue", 60)]).revision == revision


def said(error: CallFailed) -> tuple[str, str]:
    """Return code and reason."""
    return error.code, error.reason


def errors_in(repository: Repository) -> list[str]:
    """Return what fsck calls an error."""
    return [one.text for one in check(repository) if one.severity == "error"]


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_refuses_uploads_and_rollbacks(what: str, disk: Path) -> None:
    """Both are UNAVAILABLE, STORAGE; Classify goes on; with space again all is as ever."""
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, limits=TO_THE_LAST_BYTE)
    with running as server, Client(server.address) as client:
        result(ended_of(client, client.rename_class("colours", "blue", "azure")))
        with FULL[what](disk):
            error = failure(lambda: client.add_class("colours", "violet", VIOLETS))
            assert said(error) == ("UNAVAILABLE", "STORAGE")
            assert "No space left on device" in str(error)
            assert said(failure(lambda: client.rollback("colours"))) == ("UNAVAILABLE", "STORAGE")
            assert serves(client, 2)
            assert errors_in(repository) == []
        response = result(ended_of(client, client.add_class("colours", "violet", VIOLETS)))
        assert response.revision.revision == 3
        assert client.rollback("colours").serving_revision.revision == 2
    assert errors_in(repository) == []


@pytest.mark.parametrize("what", FULL)
def test_the_runbooks_remedy_for_a_full_disk_helps(what: str, disk: Path) -> None:
    """With no byte or no inode left gc deletes old revisions, and then changes are made again.

    What an operation that waits needs stays: the database is asked, though it cannot be written.
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
def test_uploads_are_refused_while_the_disk_has_room(what: str, tmp_path: Path) -> None:
    """Before the last byte and the last inode they are RESOURCE_EXHAUSTED, and named."""
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
            assert said(error) == ("RESOURCE_EXHAUSTED", "DISK_FULL")
            assert what in str(error)


@pytest.mark.parametrize("what", FULL)
def test_a_disk_that_fills_up_meanwhile_costs_no_operation(what: str, disk: Path) -> None:
    """What was acknowledged before waits until there is space, and is done once."""
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, worker=False, limits=TO_THE_LAST_BYTE)
    with running as first, Client(first.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
    server = Running(servers.command(repository.root), repository.root)
    try:
        with Client(server.address) as client:
            with FULL[what](disk):
                server.close()
                server = Running(servers.command(repository.root), repository.root)
                died = server.fact("worker died")
                assert died["exit_code"] == GAVE_UP
                why = server.fact("worker gives up")["error"]
                assert "full" in why or "unable to open" in why or "No space left" in why
                with Client(server.address) as again:
                    assert serves(again, 1)
            with Client(server.address) as again:
                assert result(ended_of(again, accepted)).revision.revision == 2
                assert list(again.model("colours").revisions) == [1, 2]
    finally:
        server.close()
    assert errors_in(repository) == []


def test_a_repository_that_becomes_read_only(colours: Repository) -> None:
    """Changes are refused or end with STORAGE, and Classify goes on; later the same ones pass."""
    root = colours.root
    with servers.running(root) as server, Client(server.address) as client:
        result(ended_of(client, client.add_class("colours", "violet", VIOLETS)))
        with disks.read_only(root / "images", root / "exemplars", root / "models"):
            whites = [(f"{n}.png", content) for n, content in enumerate(pictures("white", 12))]
            error = failure(lambda: client.add_class("colours", "white", whites))
            assert said(error) == ("UNAVAILABLE", "STORAGE")
            assert "Read-only file system" in str(error)
            assert str(root) not in str(error)
            failed = ended_of(client, client.rename_class("colours", "blue", "azure"))
            assert said(failure(lambda: result(failed))) == ("UNAVAILABLE", "STORAGE")
            assert said(failure(lambda: client.rollback("colours"))) == ("UNAVAILABLE", "STORAGE")
            assert serves(client, 2)
        renamed = ended_of(client, client.rename_class("colours", "blue", "azure"))
        assert result(renamed).revision.revision == 3
        assert serves(client, 3)
    assert errors_in(colours) == []


def test_a_server_starts_on_a_read_only_repository(colours: Repository) -> None:
    """It serves what is there and refuses changes; when it may write it takes and makes them."""
    with disks.read_only(colours.root):
        server = Running(servers.command(colours.root), colours.root)
        try:
            with Client(server.address) as client:
                assert serves(client, 1)
                assert server.fact("worker died")["exit_code"] == GAVE_UP
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
def test_a_database_that_is_lost_is_not_taken_for_a_new_one(
    harm: str, why: str, colours: Repository
) -> None:
    """The server serves on and refuses changes, the worker gives up, gc keeps; all say why.

    With the database of a backup in its place it knows its operations again.
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
    server = Running(servers.command(colours.root), colours.root)
    try:
        with Client(server.address) as client:
            assert serves(client, 1)
            error = failure(lambda: client.rename_class("colours", "blue", "azure"))
            assert said(error) == ("UNAVAILABLE", "DATABASE")
            assert why in str(error)
            assert why in server.fact("no database")["error"]
            assert why in server.fact("worker gives up")["error"]
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


def test_one_may_begin_with_an_empty_database(colours: Repository) -> None:
    """Once the mark is deleted that says that there was one, changes are made again."""
    with servers.running(colours.root, worker=False) as server:
        server.stop()
    database = colours.root / "operations.sqlite"
    database.write_bytes(b"")
    database.with_name("operations.sqlite.made").unlink()
    with servers.running(colours.root) as server, Client(server.address) as client:
        renamed = ended_of(client, client.rename_class("colours", "blue", "azure"))
        assert result(renamed).revision.revision == 2
