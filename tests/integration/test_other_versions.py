"""Repositories of earlier releases, rows of newer ones, and damaged files."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from golden.make import SIZE, named_pictures
from google.longrunning import operations_pb2
from support import golden, servers, tiny
from support.pictures import picture
from support.servers import Command, Running

from topwork import CallFailed, Client, progress, result
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository, revision_key
from topwork.cli.maintain import gc
from topwork.inference import inference_service_pb2 as infer_pb
from topwork.inference import inference_service_pb2_grpc as infer_grpc
from topwork.v1 import change_pb2 as change_pb
from topwork_trainer.cache import EmbeddingCache, _BackboneCache
from topwork_trainer.finetuning import checkpoints

RELEASES = sorted(path.parent.name for path in golden.ROOT.glob("*/left.tar.xz"))


@pytest.fixture(params=RELEASES)
def release_files(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the directory of a release's repository and cache; see ``golden.make``."""
    with tarfile.open(golden.ROOT / request.param / "left.tar.xz") as archive:
        # Python before 3.11.4 has no data_filter.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tmp_path)  # noqa: S202 # our own archive
    return tmp_path


def reason(operation: operations_pb2.Operation) -> str:
    """Return the error reason of an operation; empty if it did not fail."""
    return CallFailed(operation.error).reason if operation.HasField("error") else ""


# An upgrade


def test_a_server_takes_over_the_repository_of_an_earlier_release(release_files: Path) -> None:
    """Operations, answers and pins are the same; waiting and new changes succeed."""
    expected = json.loads((release_files / "expected.json").read_text())
    repository = Repository(release_files / "repository")
    with servers.running(repository.root) as server, Client(server.address) as client:
        waiting = [stored["name"] for stored in expected["operations"] if not stored["done"]]
        answer = client.classify(
            "colours", [picture("violet", 50, size=SIZE)], revision=expected["serving"]
        )
        predictions = answer.results[0].predictions
        assert dict(predictions) == pytest.approx(expected["probabilities"], abs=1e-5)
        for name in waiting:
            *_, last = client.watch(name)
            assert result(last).revision.revision == 4
        assert [
            {
                "name": operation.name,
                "kind": change_pb.ChangeKind.Name(progress(operation).kind),
                "label": progress(operation).label,
                "done": operation.done,
                "reason": reason(operation),
            }
            for operation in client.operations()
        ] == [{**stored, "done": True} for stored in expected["operations"]]
        model = client.model("colours")
        assert list(model.revisions) == [*expected["revisions"], 4]
        assert list(model.pinned_revisions) == expected["pinned"]
        assert [len(revision.labels) for revision in client.revisions("colours")] == [6, 5, 5, 4]
        earlier = [*client.list_examples("colours", revision=expected["serving"], previews=True)]
        assert len(earlier) == client.model("colours").serving_revision.metrics.images - 6
        assert all(example.preview for example in earlier)
        assert not any(example.HasField("label_probability") for example in earlier)
        newer = [*client.list_examples("colours")]
        assert all(example.HasField("label_probability") for example in newer)
        *_, last = client.watch(client.add_class("colours", "white", named_pictures("white")).name)
        assert result(last).revision.revision == 5
        assert client.rollback("colours").serving_revision.revision == 4
    gc.main([str(repository.root), "--keep", "1"], standalone_mode=False)
    assert repository.revisions("colours") == [1, 4, 5]
    assert [problem for problem in check(repository) if problem.severity == "error"] == []


def test_caches_and_checkpoints_of_an_earlier_release_are_used(release_files: Path) -> None:
    """A cached row is found under its key, and a checkpoint is loaded."""
    with EmbeddingCache(release_files / "cache") as cache:
        row = _BackboneCache(cache, bytes(32), 4).get(b"c" * 32)
    assert row is not None
    assert (row.digest, row.thumbnail) == (bytes(range(32)), b"a thumbnail")
    state = checkpoints.load(release_files / "repository" / "checkpoints" / "colours.pt", "run")
    assert state is not None
    assert (state["step"], state["w"].tolist()) == (3, [1.0, 1.0])


# Rows of another version


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Running]:
    """Yield a server without a worker."""
    repository = tiny.repository(tmp_path / "repository")
    with servers.running(repository.root, worker=False) as started:
        yield started


def test_list_operations_includes_rows_of_a_newer_version(idle: Running, topwork: Command) -> None:
    """Each operation is listed with its readable fields, by rpc and by command."""
    newer: dict[str, dict[str, Any]] = {
        "kind": {"attributes": json.dumps({"kind": "merge", "model": "colours", "label": "red"})},
        "none": {"attributes": None},
        "outcome": {"status": "SUCCESS", "output": json.dumps({"answer": 42})},
        "torn": {"status": "SUCCESS", "output": '{"result": {"revi'},
        "error": {
            "status": "SUCCESS",
            "output": json.dumps({"failure": {"kind": "Paused", "reason": "PAUSED"}}),
        },
    }
    with Client(idle.address) as client:
        names = {what: client.retrain("colours").name for what in newer}
        names["plain"] = client.retrain("colours").name
        with closing(sqlite3.connect(idle.repository / "operations.sqlite")) as database:
            for what, columns in newer.items():
                changes = ", ".join(f"{column} = ?" for column in columns)
                database.execute(
                    f"UPDATE workflow_status SET {changes} WHERE workflow_uuid = ?",  # noqa: S608  # names of this test
                    [*columns.values(), names[what].removeprefix("operations/")],
                )
            database.commit()
        listed = {operation.name: operation for operation in client.operations()}
        assert listed.keys() == set(names.values())
        assert progress(listed[names["kind"]]).label == "red"
        assert [reason(listed[names[what]]) for what in ("outcome", "torn", "error", "plain")] == [
            "DATA_LOSS",
            "DATA_LOSS",
            "PAUSED",
            "",
        ]
        assert listed[names["error"]].raw.error.code == grpc.StatusCode.UNKNOWN.value[0]
        for name in names.values():
            assert next(client.watch(name)).name == name
    status, out, _ = topwork("operations list", "--json", address=idle.address)
    assert (status, len(out.splitlines())) == (0, len(names))


def test_a_change_of_a_newer_version_fails(idle: Running) -> None:
    """An unknown kind of change ends with DATA_LOSS and its name; the next change succeeds."""
    with Client(idle.address) as client:
        newer, plain = client.retrain("colours").name, client.retrain("colours").name
    with closing(sqlite3.connect(idle.repository / "operations.sqlite")) as database:
        database.execute(
            "UPDATE workflow_input SET inputs = replace(inputs, 'retrain', 'merge_classes') "
            "WHERE workflow_uuid = ?",
            [newer.removeprefix("operations/")],
        )
        database.commit()
    with servers.running(idle.repository) as server, Client(server.address) as client:
        *_, failed = client.watch(newer)
        assert (reason(failed), "merge_classes" in failed.raw.error.message) == ("DATA_LOSS", True)
        *_, last = client.watch(plain)
        assert result(last).revision.revision == 2


# Damage


@pytest.mark.parametrize("file", ["metrics.json", "serving.json", "backbone.json"])
def test_lists_include_a_damaged_model(file: str, tmp_path: Path, topwork: Command) -> None:
    """A damaged model is in every list with its labels; other models are complete."""
    repository = tiny.repository(tmp_path / "repository")
    manifest = repository.manifest("colours", 1)
    copy = tiny.publish_copy(repository, manifest, model="copies")
    repository.set_serving("copies", copy.revision, why="fit")
    with servers.running(repository.root, worker=False) as server, Client(server.address) as client:
        paths: dict[str, Callable[[], Path]] = {
            "metrics.json": lambda: repository.root / revision_key(copy) / "metrics.json",
            "serving.json": lambda: repository.root / repository.serving_key("copies"),
            "backbone.json": lambda: (
                (repository.root / repository.key("backbones", manifest.backbone)) / "backbone.json"
            ),
        }
        paths[file]().write_bytes(b'{"schema": 9}')
        listed = {model.name: model for model in client.models()}
        for name in ("copies", "colours"):
            revision = listed[f"models/{name}"].serving_revision
            assert tuple(revision.labels) == manifest.labels
            assert client.model(name) == listed[f"models/{name}"]
        assert listed["models/colours"].serving_revision.HasField("metrics")
        assert [revision.revision for revision in client.revisions("copies")] == [1]
        with grpc.insecure_channel(server.address) as channel:
            index = infer_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(
                infer_pb.RepositoryIndexRequest()
            )
        assert [model.name for model in index.models] == ["colours", "copies"]
        for command in (["models"], ["describe", "copies"], ["history", "copies"]):
            assert topwork(*command, address=server.address)[0] == 0
