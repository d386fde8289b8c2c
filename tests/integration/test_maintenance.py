"""``topwork gc`` and ``topwork fsck``: output and exit status."""

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
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.changes.database import database_url, note_database, prepare
from topwork.cli.maintain import fsck, gc
from topwork.errors import InvalidInput
from topwork.storage.files import sha256
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return an old repository: see ``stored.repository``."""
    return stored.repository(tmp_path / "repository")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Exit status and output of a command."""

    status: int
    stdout: str
    stderr: str


class Run:
    """Runs commands on a repository."""

    def __init__(self, repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
        self._root = str(repository.root)
        self._capsys = capsys

    def __call__(self, command: click.Command, *options: str) -> Result:
        """Run a command and return its result."""
        with pytest.raises(SystemExit) as ended:
            command.main([self._root, *options])
        assert isinstance(ended.value.code, int)
        printed = self._capsys.readouterr()
        return Result(status=ended.value.code, stdout=printed.out, stderr=printed.err)

    def json(self, command: click.Command, *options: str) -> Any:
        """Run a command with --json and return its single object."""
        (line,) = self(command, "--json", *options).stdout.splitlines()
        return json.loads(line)


@pytest.fixture
def run(repository: Repository, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of commands on the repository."""
    return Run(repository, capsys)


def errors(repository: Repository) -> list[str]:
    """Return the paths of errors that fsck finds."""
    return [problem.path for problem in check(repository) if problem.severity == "error"]


# gc


def test_gc_deletes_and_counts_by_kind(repository: Repository, run: Run) -> None:
    """`gc` deletes unreferenced files and prints their number in a row for each kind."""
    result = run(gc, "--keep", "1")
    assert result.status == 0
    _, *rows = result.stdout.splitlines()
    counts = {kind: int(count) for kind, count, _ in map(str.split, rows)}
    expected = {"revision": 2, "shard": 1, "image": 1}
    unused = dict.fromkeys(("model", "evaluation", "backbone", "temporary", "candidate"), 0)
    assert counts == {**unused, **expected}
    assert repository.revisions("m") == [3, 4]


def test_gc_as_json_is_one_object(run: Run) -> None:
    """`gc --json` lists each deleted item with kind, path and bytes."""
    size = len(image(1))
    report = run.json(gc, "--keep", "1")
    assert {"kind": "image", "path": f"images/{sha256(image(1))}", "bytes": size} in report[
        "removed"
    ]
    assert report["bytes"] == sum(item["bytes"] for item in report["removed"])
    assert (report["dry_run"], report["refused"]) == (False, [])


def test_gc_dry_run_deletes_nothing(repository: Repository, run: Run) -> None:
    """`gc --dry-run` prints what it would delete."""
    assert "would go" in run(gc, "--keep", "1", "--dry-run").stdout
    assert run.json(gc, "--keep", "1", "--dry-run")["dry_run"]
    assert repository.revisions("m") == [1, 2, 3, 4]


def test_gc_spares_new_files(repository: Repository, run: Run) -> None:
    """New files stay unless --spare-hours is 0."""
    put_backbone(repository, 7)
    assert run.json(gc)["removed"] == []
    assert len(run.json(gc, "--spare-hours", "0")["removed"]) == 1


def test_gc_with_an_unreadable_manifest_exits_with_1(repository: Repository, run: Run) -> None:
    """An unreadable manifest is named on standard error."""
    (repository.root / "models" / "m" / "4" / "manifest.json").write_bytes(b"{")
    result = run(gc)
    assert result.status == 1
    assert "models/m/4/manifest.json" in result.stderr


def test_gc_keeps_images_of_unfinished_operations(
    repository: Repository, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gc` asks the given database for the images of unfinished operations."""
    urls: list[str] = []

    def pending(url: str) -> set[str]:
        urls.append(url)
        return {sha256(image(8))}

    monkeypatch.setattr("topwork.changes.database.pending_images", pending)
    put_shard(repository, 8)
    grow_old(repository)
    assert run.json(gc, "--database", "postgresql://host/topwork")["removed"] == []
    assert set(urls) == {"postgresql://host/topwork"}
    urls.clear()
    assert len(run.json(gc)["removed"]) == 2  # there is no SQLite file
    assert urls == []


def test_gc_requires_the_url_of_a_used_database(
    repository: Repository, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If operations may be in PostgreSQL, gc deletes nothing without the database's URL."""
    url = "postgresql://me:secret@host/topwork"
    note_database(repository.root, url)
    note_database(repository.root, database_url(repository.root))  # of another server on this host
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
    """If the database is unavailable, gc deletes old revisions, but no images and no shards."""
    put_shard(repository, 8)
    grow_old(repository)
    unavailable = f"postgresql://nobody@/topwork?host={repository.root}"
    result = run(gc, "--keep", "1", "--json", "--database", unavailable)
    report = json.loads(result.stdout.splitlines()[-1])
    assert result.status == 1
    assert [item["path"] for item in report["removed"]] == ["models/m/1", "models/m/2"]
    (text,) = report["refused"]
    assert "cannot be used now" in text
    assert "no shard and no image was deleted" in text


def test_gc_reads_the_sqlite_database_of_the_repository(repository: Repository, run: Run) -> None:
    """`gc` reads the SQLite file in the repository, if it exists, and does not delete it."""
    prepare(database_url(repository.root))
    put_shard(repository, 8)
    grow_old(repository)
    assert len(run.json(gc)["removed"]) == 2
    assert (repository.root / "operations.sqlite").exists()


# gc during uploads


def test_an_upload_whose_images_gc_deleted_fails(colours: Repository) -> None:
    """An upload slower than gc's spare hours is UNAVAILABLE; its repetition succeeds.

    gc runs between two messages, after all stored files were made to look a hundred days old.
    """
    config = change_pb.AddClassConfig(
        model="models/colours", label="violet", request_id=str(uuid.uuid4())
    )
    images = [change_pb.TrainingImage(content=content) for content in pictures("violet", 12)]

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
    assert errors(colours) == []


def test_an_upload_repairs_a_damaged_image(colours: Repository) -> None:
    """An upload of a photo whose stored image is damaged stores it again and succeeds."""
    violets = [(f"{n}.png", content) for n, content in enumerate(pictures("violet", 6))]
    digests = [colours.put_image(content) for _, content in violets]
    (colours.root / colours.key("images", digests[0])).write_bytes(b"damaged")
    assert errors(colours)
    with servers.running(colours.root) as server, Client(server.address) as client:
        *_, finished = client.watch(client.add_class("colours", "violet", violets).name)
        assert result(finished).images_used == 6
    assert errors(colours) == []


# fsck


def test_fsck_of_a_valid_repository_exits_with_0(run: Run) -> None:
    """`fsck` of a valid repository prints no problem; the exit status is 0."""
    result = run(fsck)
    assert (result.status, result.stdout) == (0, "nothing is wrong\n")
    assert run.json(fsck) == {"errors": 0, "notes": 0, "problems": []}


def test_fsck_names_a_changed_file(repository: Repository, run: Run) -> None:
    """`fsck` prints a line with the path of an error; the exit status is 1."""
    (repository.root / "models" / "m" / "2" / "head.onnx").write_bytes(b"another head")
    result = run(fsck)
    assert result.status == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith("error: models/m/2/head.onnx: ")
    assert "it was changed" in line


def test_fsck_as_json_is_one_object(repository: Repository, run: Run) -> None:
    """`fsck --json` lists each problem with severity and path."""
    (repository.root / "models" / "m" / "2" / "head.onnx").unlink()
    put_backbone(repository, 7)
    report = run.json(fsck)
    assert (report["errors"], report["notes"]) == (1, 1)
    assert [(problem["severity"], problem["path"]) for problem in report["problems"]] == [
        ("error", "models/m/2/head.onnx"),
        ("note", "backbones"),
    ]


def test_fsck_with_notes_exits_with_0(repository: Repository, run: Run) -> None:
    """Notes without errors leave the exit status 0."""
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
    """A lost database of operations is an error in an otherwise valid repository."""
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
    """A database with a valid header and damaged pages is an error, and is not changed."""
    prepare(database_url(repository.root))
    path = repository.root / "operations.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[:8192] + bytes(len(content) - 8192))
    (problem,) = run.json(fsck)["problems"]
    assert (problem["severity"], problem["path"]) == ("error", "operations.sqlite")
    assert path.read_bytes()[:8192] == content[:8192]


# Both


@pytest.mark.parametrize("command", [gc, fsck])
def test_a_directory_without_repository_is_refused(command: click.Command, tmp_path: Path) -> None:
    """A directory that is no repository is refused with its name."""
    with pytest.raises(InvalidInput, match="is no repository") as caught:
        command.main([str(tmp_path)])
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("command", [gc, fsck])
def test_an_os_error_is_printed_as_one_line(
    command: click.Command, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError is printed as one line without a traceback."""

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system", "images")

    monkeypatch.setattr(f"topwork.cli.maintain.{'collect' if command is gc else 'check'}", fail)
    result = run(command)
    assert result.status == 1
    assert "Read-only file system" in result.stderr.splitlines()[-1]
