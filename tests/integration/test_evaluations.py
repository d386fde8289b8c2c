"""Evaluate, evaluation sets and their results on a real server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.pictures import pictures
from support.servers import Command, failure, fields

from topwork import CallFailed, Client, LabelledImage, Operation
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

LABELS = ("amber", "blue", "crimson", "green")
ANY = change_pb.ChangeOptions(gate=change_pb.Gate(max_old_class_drop=1.0, min_new_class_recall=0.0))


def held_out(labels: Sequence[str] = LABELS, count: int = 15) -> list[LabelledImage]:
    """Return labelled pictures that no model is trained on."""
    return [
        LabelledImage((f"{label}-{number}", content), label, {"half": str(number % 2)})
        for label in labels
        for number, content in enumerate(pictures(label, count, start=1000))
    ]


def finished(client: Client, operation: Operation) -> Operation:
    """Wait for the end of an operation."""
    *_, last = client.watch(operation.name)
    return last


def test_set_is_stored_judges_and_is_deleted(client: Client, model: str) -> None:
    """A change that loses on the stored set is rejected; without the set it serves."""
    request_id = str(uuid.uuid4())

    def evaluate() -> Operation:
        images = [*held_out(), *map(LabelledImage, pictures("violet", 5))]
        return client.evaluate(model, images, name="held-out", max_drop=0.05, request_id=request_id)

    accepted = finished(client, evaluate())
    found = accepted.evaluation()
    assert evaluate().name == accepted.name
    assert accepted.progress().kind == change_pb.CHANGE_KIND_EVALUATE
    assert (found.model, found.revision, found.metrics.images) == (f"models/{model}", 1, 60)
    assert found.unknown.unknown_images == 5
    assert {row.value for row in found.subgroups} == {"0", "1"}
    assert client.get_evaluation(model, "held-out", 1) == found
    (stored,) = client.list_evaluation_sets(model)
    assert client.get_evaluation_set(model, "held-out") == stored
    assert {row.label: row.images for row in stored.labels} == {"": 5, **dict.fromkeys(LABELS, 15)}
    assert (stored.max_drop, stored.images, stored.stored_images) == (0.05, 65, 65)

    def spoil() -> Operation:
        wrong = pictures("blue", 60, start=100)
        return finished(client, client.add_examples(model, "amber", wrong, options=ANY))

    with pytest.raises(CallFailed, match="on the evaluation set 'held-out'") as rejected:
        spoil().result()
    assert rejected.value.reason == "GATE_FAILED"
    assert client.model(model).serving_revision.revision == 1
    assert [row.revision for row in client.list_evaluations(model)] == [2, 1]
    (failed,) = client.list_evaluations(model, "held-out", revision=2)
    assert failed.gate_failure in str(rejected.value)
    again = finished(client, client.evaluate(model, name="held-out")).evaluation()
    assert again.metrics == found.metrics
    client.delete_evaluation_set(model, "held-out")
    assert [*client.list_evaluation_sets(model)] == []
    assert spoil().result().revision.revision == 3


@pytest.mark.parametrize(
    ("config", "image", "code", "field"),
    [
        ({"evaluation_set": "../x"}, {}, "INVALID_ARGUMENT", "config.evaluation_set"),
        (
            {"evaluation_set": "x", "max_drop": float("nan")},
            {},
            "INVALID_ARGUMENT",
            "config.max_drop",
        ),
        ({"evaluation_set": "x", "max_drop": -0.1}, {}, "INVALID_ARGUMENT", "config.max_drop"),
        ({"evaluation_set": "x", "max_drop": 1.1}, {}, "INVALID_ARGUMENT", "config.max_drop"),
        ({"max_drop": 0.1}, {}, "INVALID_ARGUMENT", "config.max_drop"),
        ({"revision": 9}, {}, "NOT_FOUND", None),
        ({"revision": -1}, {}, "INVALID_ARGUMENT", "config.revision"),
        ({}, {"label": "x" * 300}, "INVALID_ARGUMENT", "images[0].label"),
        ({}, {"columns": {str(n): "" for n in range(21)}}, "INVALID_ARGUMENT", "images[0].columns"),
        ({}, {"columns": {"a": "x" * 300}}, "INVALID_ARGUMENT", "images[0].columns"),
        ({"evaluation_set": "unknown"}, None, "NOT_FOUND", None),
        ({}, None, "INVALID_ARGUMENT", "images"),
    ],
)
def test_invalid_evaluation_is_refused(
    models: model_grpc.ModelServiceStub,
    model: str,
    config: dict[str, object],
    image: dict[str, object] | None,
    code: str,
    field: str | None,
) -> None:
    """The call fails and names the field; nothing is stored."""

    def messages() -> Iterator[evaluation_pb.EvaluateRequest]:
        made = evaluation_pb.EvaluateConfig(model=f"models/{model}", **config)  # type: ignore[arg-type]  # of the cases
        yield evaluation_pb.EvaluateRequest(config=made)
        if image is not None:
            content = pictures("amber", 1)[0]
            own = evaluation_pb.EvaluationImage(content=content, **image)  # type: ignore[arg-type]  # of the cases
            yield evaluation_pb.EvaluateRequest(images=[own])

    failed = failure(lambda: models.Evaluate(messages()))
    assert failed.code == code
    assert fields(failed) == ([] if field is None else [field])
    request = evaluation_pb.ListEvaluationSetsRequest(model=f"models/{model}")
    assert not models.ListEvaluationSets(request).evaluation_sets


@pytest.mark.parametrize(
    "call",
    [
        lambda client, model: client.get_evaluation_set(model, "x"),
        lambda client, model: client.delete_evaluation_set(model, "x"),
        lambda client, model: client.get_evaluation(model, "x", 1),
        lambda client, model: [*client.list_evaluations(model, "x")],
        lambda client, _model: [*client.list_evaluation_sets("no-such-model")],
    ],
)
def test_unknown_set_is_not_found(
    client: Client, model: str, call: Callable[[Client, str], object]
) -> None:
    """The error names what is missing."""
    with pytest.raises(CallFailed, match=r"there is no (evaluation set|model)") as failed:
        call(client, model)
    assert failed.value.code == "NOT_FOUND"


def test_commands_store_show_and_delete_a_set(topwork: Command, tmp_path: Path, model: str) -> None:
    """`evaluate --name` uploads and stores a set, `evaluations` shows and deletes it."""
    for label in LABELS[:2]:
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for number, content in enumerate(pictures(label, 5, start=1000)):
            (folder / f"{number}.png").write_bytes(content)

    def run(*arguments: object) -> str:
        status, output, errors = topwork(*arguments)
        assert status == 0, errors
        return output

    data, options = tmp_path / "data", ("--name", "weeks", "--max-drop", "0.1", "--json")
    assert json.loads(run("evaluate", *options, model, data))["images"] == 10
    assert "weeks" in run("evaluations list", model)
    shown = json.loads(run("evaluations show", "--json", model, "weeks"))
    assert (shown["max_drop"], shown["images"]) == (0.1, 10)
    assert [row["revision"] for row in shown["results"]] == [1]
    assert "0.1" in run("evaluations show", model, "weeks")
    assert "accuracy" in run("evaluate", "--name", "weeks", model)
    run("evaluations delete", model, "weeks")
    assert run("evaluations list", "--json", model) == ""
