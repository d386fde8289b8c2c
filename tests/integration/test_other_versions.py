"""What other versions stored, or what is damaged, costs nothing but itself."""

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
from golden.make import SIZE, some
from google.longrunning import operations_pb2
from support import golden, servers, tiny
from support.pictures import picture
from support.servers import Command, Running

from topwork import CallFailed, Client, progress, result
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.cli.maintain import gc
from topwork.inference import inference_service_pb2 as infer_pb
from topwork.inference import inference_service_pb2_grpc as infer_grpc
from topwork.v1 import change_pb2 as change_pb
from topwork_trainer.cache import EmbeddingCache, _BackboneCache
from topwork_trainer.finetuning import checkpoints

RELEASES = sorted(path.parent.name for path in golden.ROOT.glob("*/left.tar.xz"))


@pytest.fixture(params=RELEASES)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the directory of what a release left behind; see ``golden.make``."""
    with tarfile.open(golden.ROOT / request.param / "left.tar.xz") as archive:
        # Python 3.11.4 brought it.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tmp_path)  # noqa: S202 # our own archive
    return tmp_path


def reason(operation: operations_pb2.Operation) -> str:
    """Return why an operation failed; empty if it did not."""
    return CallFailed(operation.error).reason if operation.HasField("error") else ""


# An upgrade


def test_a_server_goes_on_where_an_earlier_release_stopped(left: Path) -> None:
    """It tells of all operations, answers alike, finishes what was acknowledged, and changes on."""
    expected = json.loads((left / "expected.json").read_text())
    repository = Repository(left / "repository")
    with servers.running(repository.root) as server, Client(server.address) as client:
        waiting = [one["name"] for one in expected["operations"] if not one["done"]]
        answer = client.classify(
            "colours", [picture("violet", 50, size=SIZE)], revision=expected["serving"]
        )
        assert {
            one.label: one.probability for one in answer.results[0].predictions
        } == pytest.approx(expected["probabilities"], abs=1e-5)
        for name in waiting:
            *_, last = client.watch(name)
            assert result(last).revision.revision == 4
        assert [
            {
                "name": one.name,
                "kind": change_pb.ChangeKind.Name(progress(one).kind),
                "label": progress(one).label,
                "done": one.done,
                "reason": reason(one),
            }
            for one in client.operations()
        ] == [{**one, "done": True} for one in expected["operations"]]
        model = client.model("colours")
        assert list(model.revisions) == [*expected["revisions"], 4]
        assert list(model.pinned_revisions) == expected["pinned"]
        assert [len(one.labels) for one in client.revisions("colours")] == [6, 5, 5, 4]
        *_, last = client.watch(client.add_class("colours", "white", some("white")).name)
        assert result(last).revision.revision == 5
        assert client.rollback("colours").serving_revision.revision == 4
    gc.main([str(repository.root), "--keep", "1"], standalone_mode=False)
    assert repository.revisions("colours") == [1, 4, 5]
    assert [one for one in check(repository) if one.severity == "error"] == []


def test_caches_and_checkpoints_of_an_earlier_release_are_used(left: Path) -> None:
    """A row is found under its keys, and a training goes on from its state."""
    with EmbeddingCache(left / "cache") as cache:
        row = _BackboneCache(cache, bytes(32), 4).get(b"c" * 32)
    assert row is not None
    assert (row.digest, row.thumbnail) == (bytes(range(32)), b"a thumbnail")
    state = checkpoints.load(left / "repository" / "checkpoints" / "colours.pt", "run")
    assert state is not None
    assert (state["step"], state["w"].tolist()) == (3, [1.0, 1.0])


# Rows of another version


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Running]:
    """Yield a server without a worker."""
    repository = tiny.repository(tmp_path / "repository")
    with servers.running(repository.root, worker=False) as started:
        yield started


def test_rows_of_a_newer_version_do_not_break_the_list(idle: Running, topwork: Command) -> None:
    """Each is listed with what can be read of it, by rpc and by command, and can be asked for."""
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
        listed = {one.name: one for one in client.operations()}
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


def test_a_change_that_only_a_newer_version_can_make_fails(idle: Running) -> None:
    """Its operation says DATA_LOSS and why, and the next change of the model is made."""
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


@pytest.mark.parametrize("name", ["metrics.json", "serving.json", "backbone.json"])
def test_a_damaged_model_does_not_break_a_list(name: str, tmp_path: Path, topwork: Command) -> None:
    """It is listed with its labels, described, and in every other list; the others are whole."""
    repository = tiny.repository(tmp_path / "repository")
    manifest = repository.manifest("colours", 1)
    copy = tiny.publish_copy(repository, manifest, model="copies")
    repository.set_serving("copies", copy.revision, why="fit")
    with servers.running(repository.root, worker=False) as server, Client(server.address) as client:
        paths: dict[str, Callable[[], Path]] = {
            "metrics.json": lambda: repository.report_file(copy).with_name("metrics.json"),
            "serving.json": lambda: repository.serving_file("copies"),
            "backbone.json": lambda: (
                repository.path("backbones", manifest.backbone) / "backbone.json"
            ),
        }
        paths[name]().write_bytes(b'{"schema": 9}')
        listed = {one.name: one for one in client.models()}
        for model in ("copies", "colours"):
            revision = listed[f"models/{model}"].serving_revision
            assert tuple(revision.labels) == manifest.labels
            assert client.model(model) == listed[f"models/{model}"]
        assert listed["models/colours"].serving_revision.HasField("metrics")
        assert [one.revision for one in client.revisions("copies")] == [1]
        with grpc.insecure_channel(server.address) as channel:
            index = infer_grpc.GRPCInferenceServiceStub(channel).RepositoryIndex(
                infer_pb.RepositoryIndexRequest()
            )
        assert [one.name for one in index.models] == ["colours", "copies"]
        for command in (["models"], ["describe", "copies"], ["history", "copies"]):
            assert topwork(*command, address=server.address)[0] == 0
