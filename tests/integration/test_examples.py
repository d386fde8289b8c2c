"""ListExamples, GetExample, RemoveExamples and MoveExamples of a real server."""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Callable

import grpc
import pytest
from PIL import Image
from support import tiny
from support.http_calls import ask
from support.pictures import pictures
from support.servers import AddClass, Command, Running

from topwork import CallFailed, Client, Operation
from topwork.bundle.exemplars import Exemplars
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import example_pb2 as example_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

LABELS = ("amber", "blue", "crimson", "green")
ANY = change_pb.ChangeOptions(gate=change_pb.Gate(max_old_class_drop=1.0, min_new_class_recall=0.0))


@pytest.fixture(scope="module")
def mislabelled() -> Exemplars:
    """Return the exemplars of four labels; two pictures of blue have the label green."""
    images = {label: pictures(label, 12) for label in LABELS}
    images["green"] += pictures("blue", 2, start=50)
    return tiny.embed_pictures(images)


@pytest.fixture
def wrong(serve: Callable[[Exemplars], str], mislabelled: Exemplars) -> str:
    """Return the name of a new model of the mislabelled exemplars."""
    return serve(mislabelled)


def test_predictions_are_out_of_fold_and_the_highest_first(client: Client, wrong: str) -> None:
    """They contain the probabilities of the label and of the suggestion; places fill the map."""
    rows = [*client.list_examples(wrong)]
    for row in rows:
        probabilities = [prediction.probability for prediction in row.predictions]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(probabilities) == 3
        known = {found.label: found.probability for found in row.predictions}
        assert known.get(row.label, row.label_probability) == pytest.approx(row.label_probability)
        if not row.suspect:
            assert known[row.suggested_label] == pytest.approx(row.suggested_probability)
    assert {row.predictions[0].label for row in rows if row.suspect} == {"blue"}
    assert {min(place) for place in zip(*map(place_of, rows), strict=True)} == {0}
    assert {max(place) for place in zip(*map(place_of, rows), strict=True)} == {1}


def place_of(row: example_pb.Example) -> tuple[float, float]:
    """Return the place of an example on the map."""
    assert row.HasField("map_point")
    return row.map_point.x, row.map_point.y


def test_report_is_the_stored_file(client: Client, server: Running, wrong: str) -> None:
    """By gRPC and by HTTP; of revisions that are, and with names that are right."""
    page = client.report(wrong, 1)
    assert page.startswith(b"<!doctype html>")
    assert f"{wrong}".encode() in page
    answer = ask(server.http, f"/v1/models/{wrong}/revisions/1/report")
    assert answer.json["name"] == f"models/{wrong}/revisions/1/report"
    assert base64.b64decode(answer.json["html"]) == page
    assert ask(server.http, f"/v1/models/{wrong}/revisions/2/report").code == 404
    assert ask(server.http, f"/v1/models/{wrong}/revisions/x/report").code == 400
    assert ask(server.http, "/v1/models/unknown/revisions/1/report").code == 404


def done(client: Client, operation: Operation) -> change_pb.ChangeResponse:
    """Wait for the end of an operation and return its result."""
    *_, finished = client.watch(operation.name)
    return finished.result()


def digests(client: Client, model: str, wanted: str = "") -> list[str]:
    """Return the image digests of a list."""
    return [example.digest for example in client.list_examples(model, wanted)]


def test_a_wrong_label_is_found_and_corrected(client: Client, wrong: str) -> None:
    """The suspects come first; moved to the suggested label, no suspect is left."""
    suspects = [*client.list_examples(wrong, "suspect = true", previews=True)]
    assert {(row.label, row.suggested_label) for row in suspects} == {("green", "blue")}
    assert len(suspects) == 2
    for row in suspects:
        assert row.suggested_probability > row.label_probability
        assert Image.open(io.BytesIO(row.preview)).size == (64, 64)
        assert not row.stored
    moved = client.move_examples(wrong, [row.digest for row in suspects], "blue")
    response = done(client, moved)
    assert (response.old_revision, response.revision.revision) == (1, 2)
    assert {(row.digest, *row.labels) for row in response.examples} == {
        (row.digest, "green") for row in suspects
    }
    assert digests(client, wrong, "suspect = true") == []
    assert client.get_example(wrong, suspects[0].digest).label == "blue"


def test_pages_stay_on_one_revision(
    client: Client, models: model_grpc.ModelServiceStub, model: str
) -> None:
    """All pages are of the revision of the first, though another one serves by now."""
    request = example_pb.ListExamplesRequest(model=f"models/{model}", page_size=30)
    before = digests(client, model)
    first = models.ListExamples(request)
    assert (first.total_size, first.revision, len(first.examples)) == (80, 1, 30)
    done(client, client.remove_examples(model, before[40:42], options=ANY))
    found = [row.digest for row in first.examples]
    page = first
    while page.next_page_token:
        page = models.ListExamples(
            example_pb.ListExamplesRequest(
                model=f"models/{model}", page_size=30, page_token=page.next_page_token
            )
        )
        assert page.revision == 1
        found += [row.digest for row in page.examples]
    assert found == before
    assert sorted(digests(client, model)) == sorted(set(before) - set(before[40:42]))
    with pytest.raises(grpc.RpcError, match=r"page_token .* was not given for this list"):
        models.ListExamples(
            example_pb.ListExamplesRequest(
                model=f"models/{model}",
                page_token=first.next_page_token,
                filter="label = blue",
            )
        )


def test_examples_of_an_operation_can_be_removed_again(
    client: Client, model: str, add_class: AddClass
) -> None:
    """The filter `operation` finds what an upload brought; the label goes with its last example."""
    violets = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
    operation = add_class(model, "violet", violets)
    found = [*client.list_examples(model, f'operation = "{operation.name}"', previews=True)]
    assert {row.label for row in found} == {"violet"}
    assert {row.display_name for row in found} == {name for name, _ in violets}
    assert all(row.stored and row.HasField("create_time") for row in found)
    assert len(digests(client, model, 'operation = "" AND label = "blue"')) == 20
    assert len(digests(client, model, 'display_name = "violet-1*"')) == 3
    response = done(client, client.remove_examples(model, [row.digest for row in found]))
    assert list(response.revision.labels) == list(LABELS)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda c, m, _: c.remove_examples(m, []), "INVALID_ARGUMENT", "names 0 examples"),
        (lambda c, m, _: c.remove_examples(m, ["x"]), "INVALID_ARGUMENT", "is not an image digest"),
        (lambda c, m, _: c.remove_examples(m, ["0" * 64]), "NOT_FOUND", "has no example 0000"),
        (lambda c, m, d: c.move_examples(m, d[:1], "blue"), "ALREADY_EXISTS", "the label 'blue'"),
        (lambda c, m, d: c.remove_examples(m, d[:18]), "FAILED_PRECONDITION", "have 2 images"),
        (lambda c, m, d: c.move_examples(m, d[:2], "new"), "FAILED_PRECONDITION", "have 2 images"),
        (lambda c, m, _: c.get_example(m, "0" * 64), "NOT_FOUND", "has no example 0000"),
        (lambda c, m, d: c.get_example(m, d[0], label="green"), "NOT_FOUND", "label 'green'"),
        (lambda c, m, _: c.get_example(m, "x"), "INVALID_ARGUMENT", "resource name"),
        (lambda c, m, _: [*c.list_examples(m, "fold = 1")], "INVALID_ARGUMENT", "one of label"),
        (lambda c, m, _: [*c.list_examples(m, revision=9)], "NOT_FOUND", "revisions/9"),
    ],
)
def test_bad_requests_change_nothing(
    client: Client,
    model: str,
    change: Callable[[Client, str, list[str]], object],
    code: str,
    message: str,
) -> None:
    """The error is clear and comes at once; no revision is made."""
    blues = digests(client, model, "label = blue")
    with pytest.raises(CallFailed, match=message) as caught:
        change(client, model, blues)
    assert caught.value.code == code
    assert list(client.model(model).revisions) == [1]


def test_digests_of_another_model_are_unknown(client: Client, model: str, wrong: str) -> None:
    """A digest belongs to its model, even on the same server."""
    (other, *_) = set(digests(client, wrong)) - set(digests(client, model))
    with pytest.raises(CallFailed, match=f"{model!r} has no example {other}"):
        client.remove_examples(model, [other])


def test_two_changes_that_meet_lose_nothing(client: Client, model: str) -> None:
    """With an expected revision the second fails with ABORTED, without one its example is gone."""
    blue = digests(client, model, "label = blue")[0]
    expected = change_pb.ChangeOptions(expected_revision=1)
    first = client.remove_examples(model, [blue], request_id=str(uuid.uuid4()))
    second = client.move_examples(model, [blue], "green", options=expected)
    assert done(client, first).revision.revision == 2
    with pytest.raises(CallFailed) as caught:
        done(client, second)
    assert caught.value.code == "ABORTED"
    with pytest.raises(CallFailed, match="has no example"):
        client.move_examples(model, [blue], "green")
    assert len(digests(client, model)) == 79


def test_validate_only_changes_no_example(client: Client, model: str) -> None:
    """The result predicts the metrics, and has the examples."""
    blue = digests(client, model, "label = blue")[0]
    dry = change_pb.ChangeOptions(validate_only=True)
    response = done(client, client.remove_examples(model, [blue], options=dry))
    assert [row.digest for row in response.examples] == [blue]
    assert response.revision.metrics.images == 79
    assert list(client.model(model).revisions) == [1]


def test_commands(topwork: Command, client: Client, wrong: str) -> None:
    """`examples list`, `show`, `move` and `remove` accept the unique beginning of a digest."""
    status, output, _ = topwork("examples list", wrong, "--filter", "suspect = true", "--json")
    rows = [json.loads(line) for line in output.splitlines()]
    assert (status, len(rows)) == (0, 2)
    digest = rows[0]["digest"]
    status, output, _ = topwork("examples list", wrong, "--limit", 3)
    assert digest[:12] in output.splitlines()[1]
    status, output, _ = topwork("examples show", wrong, digest[:12], "--json", "--previews")
    shown = json.loads(output)
    assert (status, shown["label"], shown["stored"]) == (0, "green", False)
    assert shown["preview"]
    status, output, _ = topwork("examples move", wrong, digest[:12], "--to", "blue")
    assert status == 0
    assert "1 example moved to blue: revision 2" in output
    assert f"{digest} no longer has the label green" in output
    status, output, _ = topwork("examples remove", wrong, digest, "--json")
    answer = json.loads(output)
    assert (answer["kind"], answer["old_revision"], answer["revision"]) == ("remove_examples", 2, 3)
    assert answer["examples"] == [{"digest": digest, "labels": ["blue"]}]
    status, _, errors = topwork("examples remove", wrong, digest[:12])
    assert (status, errors.splitlines()[-1]) == (
        1,
        f"error: model {wrong!r} has no example {digest[:12]}...",
    )
    assert digest not in digests(client, wrong)
