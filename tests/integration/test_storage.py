"""A server whose disk is full or read-only: it says so, serves on, and works when it is well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.longrunning import operations_pb2
from support import disks, servers, tiny
from support.pictures import picture, pictures
from support.servers import Running, failure

from topwork.bundle.check import check
from topwork.bundle.store import Repository
from topwork.engine import worker
from topwork.rpc.client import CallFailed, Client, result

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]

TO_THE_LAST_BYTE = {"min_free_bytes": -(2**30)}
"""Limits with which the disk itself says that it is full, not the server beforehand."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory with a small file system of its own."""
    with disks.small(tmp_path / "disk", megabytes=16) as directory:
        yield directory


def ended(client: Client, accepted: operations_pb2.Operation) -> operations_pb2.Operation:
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


def test_a_full_disk_refuses_uploads_and_rollbacks(disk: Path) -> None:
    """Both are UNAVAILABLE, STORAGE; Classify goes on; with space again all is as ever."""
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, limits=TO_THE_LAST_BYTE)
    with running as server, Client(server.address) as client:
        result(ended(client, client.rename_class("colours", "blue", "azure")))
        with disks.full(disk):
            error = failure(lambda: client.add_class("colours", "violet", VIOLETS))
            assert said(error) == ("UNAVAILABLE", "STORAGE")
            assert "No space left on device" in str(error)
            assert said(failure(lambda: client.rollback("colours"))) == ("UNAVAILABLE", "STORAGE")
            assert serves(client, 2)
            assert errors_in(repository) == []
        response = result(ended(client, client.add_class("colours", "violet", VIOLETS)))
        assert response.revision.revision == 3
        assert client.rollback("colours").serving_revision.revision == 2
    assert errors_in(repository) == []


def test_a_disk_that_fills_up_meanwhile_costs_no_operation(disk: Path) -> None:
    """What was acknowledged before waits until there is space, and is done once."""
    repository = tiny.repository(disk / "repository")
    running = servers.running(repository.root, worker=False, limits=TO_THE_LAST_BYTE)
    with running as first, Client(first.address) as client:
        accepted = client.add_class("colours", "violet", VIOLETS)
    server = Running(servers.command(repository.root), repository.root)
    try:
        with Client(server.address) as client:
            with disks.full(disk):
                server.close()
                server = Running(servers.command(repository.root), repository.root)
                died = server.fact("worker died")
                assert died["exit_code"] == worker.GAVE_UP
                assert "full" in server.fact("worker gives up")["error"]
                with Client(server.address) as again:
                    assert serves(again, 1)
            with Client(server.address) as again:
                assert result(ended(again, accepted)).revision.revision == 2
                assert list(again.model("colours").revisions) == [1, 2]
    finally:
        server.close()
    assert errors_in(repository) == []


def test_a_repository_that_becomes_read_only(colours: Repository) -> None:
    """Changes are refused or end with STORAGE, and Classify goes on; later the same ones pass."""
    root = colours.root
    with servers.running(root) as server, Client(server.address) as client:
        result(ended(client, client.add_class("colours", "violet", VIOLETS)))
        with disks.read_only(root / "images", root / "exemplars", root / "models"):
            whites = [(f"{n}.png", content) for n, content in enumerate(pictures("white", 12))]
            error = failure(lambda: client.add_class("colours", "white", whites))
            assert said(error) == ("UNAVAILABLE", "STORAGE")
            assert "Read-only file system" in str(error)
            assert str(root) not in str(error)
            failed = ended(client, client.rename_class("colours", "blue", "azure"))
            assert said(failure(lambda: result(failed))) == ("UNAVAILABLE", "STORAGE")
            assert said(failure(lambda: client.rollback("colours"))) == ("UNAVAILABLE", "STORAGE")
            assert serves(client, 2)
        renamed = ended(client, client.rename_class("colours", "blue", "azure"))
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
                assert server.fact("worker died")["exit_code"] == worker.GAVE_UP
                error = failure(lambda: client.rename_class("colours", "blue", "azure"))
                assert error.code == "UNAVAILABLE"
                assert error.reason in {"DATABASE", "STORAGE"}
        except BaseException:
            server.close()
            raise
    try:
        with Client(server.address) as client:
            renamed = ended(client, client.rename_class("colours", "blue", "azure"))
            assert result(renamed).revision.revision == 2
    finally:
        server.close()
