"""``topwork gc`` and ``topwork fsck``: what they print, and how they end."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
from support import servers, stored
from support.pictures import pictures
from support.servers import failure
from support.stored import grow_old, image, put_backbone, put_shard

from topwork import Client, result
from topwork.bundle.files import sha256
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.changes.database import database_url, note_database, prepare
from topwork.cli.maintain import fsck, gc
from topwork.errors import InvalidInput
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return an old repository: see ``stored.repository``."""
    return stored.repository(tmp_path / "repository")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Run:
    """Runs commands as a shell would."""

    def __init__(self, repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
        self._root = str(repository.root)
        self._capsys = capsys

    def __call__(self, command: click.Command, *options: str) -> Ended:
        """Run a command on the repository."""
        with pytest.raises(SystemExit) as ended:
            command.main([self._root, *options])
        assert isinstance(ended.value.code, int)
        printed = self._capsys.readouterr()
        return Ended(status=ended.value.code, stdout=printed.out, stderr=printed.err)

    def json(self, command: click.Command, *options: str) -> Any:
        """Run a command with --json and return its one object."""
        (line,) = self(command, "--json", *options).stdout.splitlines()
        return json.loads(line)


@pytest.fixture
def run(repository: Repository, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs commands on the repository."""
    return Run(repository, capsys)


# gc


def test_gc_deletes_and_says_what(repository: Repository, run: Run) -> None:
    """It deletes what it should and counts it, a row a kind."""
    result = run(gc, "--keep", "1")
    assert result.status == 0
    _, *rows = result.stdout.splitlines()
    counts = {kind: int(count) for kind, count, _ in map(str.split, rows)}
    assert counts == {"revision": 2, "backbone": 0, "shard": 1, "image": 1, "temporary": 0}
    assert repository.revisions("m") == [3, 4]


def test_gc_as_json_is_one_object(run: Run) -> None:
    """Each thing that was deleted is there with kind, path and bytes."""
    size = len(image(1))
    found = run.json(gc, "--keep", "1")
    assert {"kind": "image", "path": f"images/{sha256(image(1))}", "bytes": size} in found[
        "removed"
    ]
    assert found["bytes"] == sum(one["bytes"] for one in found["removed"])
    assert (found["dry_run"], found["refused"]) == (False, [])


def test_gc_dry_run_deletes_nothing(repository: Repository, run: Run) -> None:
    """It says what would go, in a table that says so."""
    assert "would go" in run(gc, "--keep", "1", "--dry-run").stdout
    assert run.json(gc, "--keep", "1", "--dry-run")["dry_run"]
    assert repository.revisions("m") == [1, 2, 3, 4]


def test_gc_spares_hours(repository: Repository, run: Run) -> None:
    """What is young stays, unless it is told otherwise."""
    put_backbone(repository, 7)
    assert run.json(gc)["removed"] == []
    assert len(run.json(gc, "--spare-hours", "0")["removed"]) == 1


def test_gc_ends_with_1_if_something_cannot_be_read(repository: Repository, run: Run) -> None:
    """What cannot be read is named on standard error, and protects what it may refer to."""
    (repository.root / "models" / "m" / "4" / "manifest.json").write_bytes(b"{")
    result = run(gc)
    assert result.status == 1
    assert "models/m/4/manifest.json" in result.stderr


def test_gc_keeps_what_unfinished_operations_need(
    repository: Repository, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the given database which images are still needed."""
    asked: list[str] = []

    def pending(url: str) -> set[str]:
        asked.append(url)
        return {sha256(image(8))}

    monkeypatch.setattr("topwork.changes.database.pending_images", pending)
    put_shard(repository, 8)
    grow_old(repository)
    assert run.json(gc, "--database", "postgresql://host/topwork")["removed"] == []
    assert set(asked) == {"postgresql://host/topwork"}
    asked.clear()
    assert len(run.json(gc)["removed"]) == 2  # there is no SQLite file
    assert asked == []


def test_gc_asks_for_a_database_that_was_used(
    repository: Repository, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where operations may be in PostgreSQL, gc deletes nothing until it is told where."""
    url = "postgresql://me:secret@host/topwork"
    note_database(repository.root, url)
    note_database(repository.root, database_url(repository.root))  # another server, of this host
    put_shard(repository, 8)
    grow_old(repository)
    before = repository.stored("images")
    with pytest.raises(InvalidInput, match=r"\(postgresql\).*give its URL as --database") as error:
        gc.main([str(repository.root)], standalone_mode=False)
    assert error.value.field == "database"
    assert repository.stored("images") == before
    assert "secret" not in (repository.root / "operations.database").read_text()
    monkeypatch.setattr("topwork.changes.database.pending_images", lambda _url: set())
    assert len(run.json(gc, "--database", url)["removed"]) == 2


def test_gc_without_the_database_deletes_no_image(repository: Repository, run: Run) -> None:
    """Where a database cannot be asked, old revisions go and all images and shards stay."""
    put_shard(repository, 8)
    grow_old(repository)
    nowhere = f"postgresql://nobody@/topwork?host={repository.root}"
    result = run(gc, "--keep", "1", "--json", "--database", nowhere)
    found = json.loads(result.stdout.splitlines()[-1])
    assert result.status == 1
    assert [one["path"] for one in found["removed"]] == ["models/m/1", "models/m/2"]
    (text,) = found["refused"]
    assert "cannot be used now" in text
    assert "no shard and no image was deleted" in text


def test_gc_reads_the_repositorys_own_database(repository: Repository, run: Run) -> None:
    """The SQLite file in the repository is asked if there is one, and is no garbage."""
    prepare(database_url(repository.root))
    put_shard(repository, 8)
    grow_old(repository)
    assert len(run.json(gc)["removed"]) == 2
    assert (repository.root / "operations.sqlite").exists()


# gc beside uploads


def test_no_upload_is_acknowledged_whose_images_gc_deleted(colours: Repository) -> None:
    """One that takes longer than gc spares, by whatever clock, is UNAVAILABLE; again, it is done.

    gc runs after each of its messages, when all that was stored looks a hundred days old.
    """
    config = change_pb.AddClassConfig(
        model="models/colours", label="violet", request_id=str(uuid.uuid4())
    )
    images = [change_pb.TrainingImage(content=one) for one in pictures("violet", 12)]

    def slowly() -> Iterator[change_pb.AddClassRequest]:
        yield change_pb.AddClassRequest(config=config, images=images[:6])
        servers.eventually(lambda: len(colours.stored("images")) == 6)
        grow_old(colours)
        gc.main([str(colours.root)], standalone_mode=False)
        assert colours.stored("images") == {}
        yield change_pb.AddClassRequest(images=images[6:])

    with servers.running(colours.root) as server, Client(server.address) as client:
        with grpc.insecure_channel(server.address) as channel:
            stub = model_grpc.ModelServiceStub(channel)
            error = failure(lambda: stub.AddClass(slowly()))
            assert (error.code, error.reason) == ("UNAVAILABLE", "UPLOAD_EXPIRED")
            assert list(client.operations()) == []
            whole = change_pb.AddClassRequest(config=config, images=images)
            accepted = stub.AddClass(iter([whole]))
        grow_old(colours)
        gc.main([str(colours.root), "--spare-hours", "0"], standalone_mode=False)
        *_, finished = client.watch(accepted.name)
        assert result(finished).images_used == 12
    assert [one for one in check(colours) if one.severity == "error"] == []


def test_an_image_that_was_damaged_is_repaired_by_an_upload(colours: Repository) -> None:
    """A change whose image cannot be read fails; the same photos again repair it and pass."""
    violets = [(f"{n}.png", one) for n, one in enumerate(pictures("violet", 6))]
    digests = [colours.put_image(one) for _, one in violets]
    colours.path("images", digests[0]).write_bytes(b"damaged")
    assert [one.path for one in check(colours) if one.severity == "error"]
    with servers.running(colours.root) as server, Client(server.address) as client:
        *_, finished = client.watch(client.add_class("colours", "violet", violets).name)
        assert result(finished).images_used == 6
    assert [one for one in check(colours) if one.severity == "error"] == []


# fsck


def test_fsck_of_a_sound_repository_says_so(run: Run) -> None:
    """Nothing is wrong: exit status 0."""
    result = run(fsck)
    assert (result.status, result.stdout) == (0, "nothing is wrong\n")
    assert run.json(fsck) == {"errors": 0, "notes": 0, "problems": []}


def test_fsck_names_what_is_wrong(repository: Repository, run: Run) -> None:
    """An error is a line with its path, and the exit status is 1."""
    (repository.root / "models" / "m" / "2" / "head.onnx").write_bytes(b"another head")
    result = run(fsck)
    assert result.status == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith("error: models/m/2/head.onnx: ")
    assert "it was changed" in line


def test_fsck_as_json_is_one_object(repository: Repository, run: Run) -> None:
    """Each problem has severity, path and text."""
    (repository.root / "models" / "m" / "2" / "head.onnx").unlink()
    put_backbone(repository, 7)
    found = run.json(fsck)
    assert (found["errors"], found["notes"]) == (1, 1)
    assert [(one["severity"], one["path"]) for one in found["problems"]] == [
        ("error", "models/m/2/head.onnx"),
        ("note", "backbones"),
    ]


def test_notes_are_no_failure(repository: Repository, run: Run) -> None:
    """What is only worth knowing leaves the exit status 0."""
    put_backbone(repository, 7)
    result = run(fsck)
    assert result.status == 0
    assert result.stdout.startswith("note: backbones: ")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "operations.sqlite is empty, and operations were stored in it"),
        (b"garbage", "file is not a database"),
        (None, "operations.sqlite is missing, and operations were stored in it"),
    ],
    ids=["empty", "garbage", "missing"],
)
def test_fsck_names_a_lost_database(
    content: bytes | None, why: str, repository: Repository, run: Run
) -> None:
    """Operations that were kept and cannot be read are an error, beside a sound repository."""
    prepare(database_url(repository.root))
    assert run(fsck).stdout == "nothing is wrong\n"
    path = repository.root / "operations.sqlite"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    result = run(fsck)
    assert result.status == 1
    assert result.stdout.startswith(f"error: operations.sqlite: {why}")


def test_fsck_names_a_damaged_page(repository: Repository, run: Run) -> None:
    """A database whose header is whole and whose pages are not is an error."""
    prepare(database_url(repository.root))
    path = repository.root / "operations.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[:8192] + bytes(len(content) - 8192))
    (problem,) = run.json(fsck)["problems"]
    assert (problem["severity"], problem["path"]) == ("error", "operations.sqlite")
    assert path.read_bytes()[:8192] == content[:8192]  # nothing was changed


# Both


@pytest.mark.parametrize("command", [gc, fsck])
def test_another_directory_is_no_repository(command: click.Command, tmp_path: Path) -> None:
    """A directory that holds no repository is refused by name: it was a slip of the keyboard."""
    with pytest.raises(InvalidInput, match="is no repository") as caught:
        command.main([str(tmp_path)])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("command", [gc, fsck])
def test_a_disk_that_fails_is_one_line(
    command: click.Command, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk says is an error's one line, not a traceback."""

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system", "images")

    monkeypatch.setattr(f"topwork.cli.maintain.{'collect' if command is gc else 'check'}", fail)
    result = run(command)
    assert result.status == 1
    assert "Read-only file system" in result.stderr.splitlines()[-1]
