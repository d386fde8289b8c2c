"""Every kind of change on a running server, the gate, validation, rollback and pins."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.longrunning import operations_pb2
from support.pictures import picture, pictures
from support.servers import AddClass, Running, failure, fields

from topwork import CallFailed, Client, progress, rejected, result
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.v1 import change_pb2 as change_pb

LABELS = ["amber", "blue", "crimson", "green"]
VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
BLUES = [(f"blue-{n}.png", content) for n, content in enumerate(pictures("blue", 20))]
"""The pictures on which the model was fitted."""
ZIRCONS = [(f"zircon-{n}.png", content) for n, content in enumerate(pictures("zircon", 12))]
NEW_BLUES = [(f"new-{n}.png", image) for n, image in enumerate(pictures("blue", 6, start=200))]


def wait(client: Client, accepted: operations_pb2.Operation) -> operations_pb2.Operation:
    """Wait for an operation and return it."""
    *_, finished = client.watch(accepted.name)
    return finished


def response_to(client: Client, accepted: operations_pb2.Operation) -> change_pb.ChangeResponse:
    """Wait for a change and return its response."""
    return result(wait(client, accepted))


def error_of(client: Client, accepted: operations_pb2.Operation) -> CallFailed:
    """Wait for a change that must fail and return its error."""
    return failure(lambda: response_to(client, accepted))


def expecting(revision: int) -> change_pb.ChangeOptions:
    """Return options that expect ``revision`` to serve."""
    return change_pb.ChangeOptions(expected_revision=revision)


VALIDATE = change_pb.ChangeOptions(validate_only=True)


def test_add_examples_adds_new_images_only(client: Client, model: str) -> None:
    """AddExamples adds new images and names duplicates; the labels stay the same."""
    response = response_to(client, client.add_examples(model, "blue", BLUES[:3] + NEW_BLUES))
    assert (response.revision.revision, response.images_used) == (2, 6)
    assert [skip.display_name for skip in response.skipped_images] == [n for n, _ in BLUES[:3]]
    assert response.revision.change == "add_examples"
    assert list(response.revision.labels) == LABELS
    counts = {metric.label: metric.images for metric in response.revision.metrics.per_label}
    assert counts == {"amber": 20, "blue": 26, "crimson": 20, "green": 20}
    assert response.comparison.taught.label == "blue"


def test_add_classes_adds_several_labels_at_once(client: Client, model: str) -> None:
    """One operation with the labels of its images makes one revision."""
    junk = [("junk.png", b"junk")]
    classes = {"zircon": [*ZIRCONS, *junk, ZIRCONS[3]], "violet": VIOLETS, "blue": NEW_BLUES}
    finished = wait(client, client.add_classes(model, classes))
    metadata, response = progress(finished), result(finished)
    assert (metadata.label, list(metadata.labels)) == ("", ["blue", "violet", "zircon"])
    assert (response.revision.revision, response.images_used) == (2, 12 + 12 + 6)
    assert list(response.revision.labels) == [*LABELS, "violet", "zircon"]
    skipped = [(image.label, image.display_name) for image in response.skipped_images]
    assert skipped == [("zircon", "junk.png"), ("zircon", ZIRCONS[3][0])]
    taught = [(label.label, label.images) for label in response.comparison.taught_labels]
    assert taught == [("blue", 26), ("violet", 12), ("zircon", 12)]
    lowest = min(response.comparison.taught_labels, key=lambda label: label.recall)
    assert response.comparison.taught == lowest


def test_add_examples_of_known_images_makes_no_revision(client: Client, model: str) -> None:
    """If the label has all images already, the response has the serving revision."""
    response = response_to(client, client.add_examples(model, "blue", BLUES[:3]))
    assert (response.revision.revision, response.images_used) == (1, 0)
    assert len(response.skipped_images) == 3
    assert not response.HasField("comparison")
    assert list(client.model(model).revisions) == [1]


def test_remove_class_undoes_add_class(client: Client, add_class: AddClass, model: str) -> None:
    """After AddClass and RemoveClass of a label, metrics and probabilities are as before."""
    first = client.model(model).serving_revision
    add_class(model, "violet", VIOLETS)
    response = response_to(client, client.remove_class(model, "violet"))
    assert (response.revision.revision, response.revision.parent_revision) == (3, 2)
    assert list(response.revision.labels) == LABELS
    assert response.revision.metrics == first.metrics
    photos = [picture(label, 60) for label in LABELS]
    now = client.classify(model, photos)
    assert now.revision == 3
    assert now.results == client.classify(model, photos, revision=1).results


def test_remove_class_refuses_to_leave_one_label(client: Client, model: str) -> None:
    """RemoveClass is FAILED_PRECONDITION if only two labels are left."""
    for label in LABELS[:2]:
        response_to(client, client.remove_class(model, label))
    error = failure(lambda: client.remove_class(model, "green"))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_FEW_LABELS")


def test_rename_class_changes_only_the_label(client: Client, model: str) -> None:
    """RenameClass changes the label; all probabilities stay the same."""
    before = client.classify(model, [picture("blue", 60)], top_k=4).results[0]
    response = response_to(client, client.rename_class(model, "blue", "azure"))
    assert list(response.revision.labels) == ["amber", "azure", "crimson", "green"]
    after = client.classify(model, [picture("blue", 60)], top_k=4).results[0]
    renamed = {
        label if label != "blue" else "azure": probability
        for label, probability in before.predictions
    }
    assert after.predictions[0].label == "azure"
    assert dict(after.predictions) == pytest.approx(renamed, abs=1e-5)


def test_an_invisible_label_of_an_old_model_can_be_renamed(
    client: Client, serve: Callable[[Exemplars], str], four_colours: Exemplars
) -> None:
    """A label that earlier versions allowed still serves and can be renamed."""
    old = replace(four_colours, labels=("amber", "blue", "crimson", "\u3164"))
    model = serve(old)
    (answer,) = client.classify(model, [picture("green", 60)], top_k=1).results
    assert answer.predictions[0].label == "\u3164"
    response = response_to(client, client.rename_class(model, "\u3164", "green"))
    assert list(response.revision.labels) == LABELS
    error = failure(lambda: client.rename_class(model, "green", "\u3164"))
    assert (error.reason, fields(error)) == ("LABEL_INVALID", ["new_label"])


def test_retrain_solves_the_requested_head(client: Client, model: str) -> None:
    """Retrain solves the requested kind of head; later changes use the same kind."""
    response = response_to(client, client.retrain(model, head="nearest_mean"))
    assert response.revision.head.kind == "nearest_mean"
    assert response.revision.head.normalisation == "sqrt_l2"
    response = response_to(client, client.add_class(model, "violet", VIOLETS))
    assert response.revision.head.kind == "nearest_mean"


WRONG: dict[str, tuple[Callable[[Client, str], Any], str, str]] = {
    "examples of no label": (
        lambda client, model: client.add_examples(model, "teal", BLUES),
        "NOT_FOUND",
        "teal",
    ),
    "remove no label": (
        lambda client, model: client.remove_class(model, "teal"),
        "NOT_FOUND",
        "teal",
    ),
    "rename no label": (
        lambda client, model: client.rename_class(model, "teal", "azure"),
        "NOT_FOUND",
        "teal",
    ),
    "rename to a label": (
        lambda client, model: client.rename_class(model, "blue", "green"),
        "ALREADY_EXISTS",
        "green",
    ),
    "rename to nothing": (
        lambda client, model: client.rename_class(model, "blue", ""),
        "INVALID_ARGUMENT",
        "empty",
    ),
    "unknown head": (
        lambda client, model: client.retrain(model, head="oracle"),
        "INVALID_ARGUMENT",
        "oracle",
    ),
    "unknown normalisation": (
        lambda client, model: client.retrain(model, normalisation="l3"),
        "INVALID_ARGUMENT",
        "l3",
    ),
    "negative revision": (
        lambda client, model: client.remove_class(model, "blue", options=expecting(-1)),
        "INVALID_ARGUMENT",
        "expected_revision is -1",
    ),
    "no UUID": (
        lambda client, model: client.retrain(model, request_id="7"),
        "INVALID_ARGUMENT",
        "is not a UUID",
    ),
    "impossible gate": (
        lambda client, model: client.retrain(
            model,
            options=change_pb.ChangeOptions(gate=change_pb.Gate(min_new_class_recall=2)),
        ),
        "INVALID_ARGUMENT",
        "min_new_class_recall is 2",
    ),
    "another revision": (
        lambda client, model: client.retrain(model, options=expecting(7)),
        "ABORTED",
        "serves revision 1, not 7",
    ),
    "roll back to another revision": (
        lambda client, model: client.rollback(model, 7),
        "NOT_FOUND",
        "revisions/7",
    ),
    "roll back from another revision": (
        lambda client, model: client.rollback(model, 1, expected_revision=7),
        "ABORTED",
        "serves revision 1, not 7",
    ),
    "roll back before the first": (
        lambda client, model: client.rollback(model),
        "FAILED_PRECONDITION",
        "served no revision before 1",
    ),
    "pin another revision": (
        lambda client, model: client.pin_revision(model, 7),
        "NOT_FOUND",
        "revisions/7",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_impossible_changes_are_refused_at_once(client: Client, case: str) -> None:
    """Each impossible change has its code, names the wrong value, and changes nothing."""
    call, code, message = WRONG[case]
    error = failure(lambda: call(client, "colours"))
    assert error.code == code
    assert message in str(error)
    described = client.model("colours")
    assert (list(described.revisions), list(described.pinned_revisions)) == ([1], [])


def test_an_invalid_field_is_named(client: Client) -> None:
    """INVALID_ARGUMENT has the path of the field in the request."""
    gate = change_pb.Gate(max_conflicts=-1)
    options = change_pb.ChangeOptions(gate=gate)
    error = failure(lambda: client.retrain("colours", options=options))
    assert fields(error) == ["options.gate.max_conflicts"]
    error = failure(lambda: client.add_class("colours", "violet", VIOLETS, options=options))
    assert fields(error) == ["config.options.gate.max_conflicts"]


def test_changes_with_one_request_id_are_one_operation(client: Client, model: str) -> None:
    """A repeated request id returns the operation; with another label it is ALREADY_EXISTS."""
    request_id = str(uuid.uuid4())
    finished = wait(client, client.remove_class(model, "blue", request_id=request_id))
    assert client.remove_class(model, "blue", request_id=request_id) == finished
    assert list(client.model(model).revisions) == [1, 2]
    error = failure(lambda: client.remove_class(model, "green", request_id=request_id))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


def test_a_rejected_change_does_not_serve(server: Running, client: Client, model: str) -> None:
    """A known class under a new label is rejected with its comparison; its report is published."""
    error = error_of(client, client.add_class(model, "violet", BLUES))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "GATE_FAILED")
    comparison = rejected(error)
    assert comparison is not None
    # Both labels have the same pictures, so rounding decides which of them every picture gets.
    assert comparison.drop > 0.02 or comparison.taught.recall_high < 0.6
    assert {(pair.label, pair.called) for pair in comparison.confusions} & {
        ("blue", "violet"),
        ("violet", "blue"),
    }
    described = client.model(model)
    assert (described.serving_revision.revision, list(described.revisions)) == (1, [1, 2])
    newest, _ = client.revisions(model)
    assert newest.rejection
    assert all(why in str(error) for why in newest.rejection)
    assert newest.comparison == comparison
    report = Repository(server.repository).report
    assert b"rejected" in report(Repository(server.repository).manifest(model, 2))
    again = failure(lambda: client.rollback(model, 2))
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "REVISION_REJECTED")


def test_an_open_gate_lets_a_harmful_change_serve(client: Client, model: str) -> None:
    """With a gate without limits the same change serves."""
    gate = change_pb.Gate(max_old_class_drop=1, min_new_class_recall=0)
    options = change_pb.ChangeOptions(gate=gate)
    response = response_to(client, client.add_class(model, "violet", BLUES, options=options))
    assert response.revision.revision == 2
    assert {conflict.label for conflict in response.conflicts} == {"blue"}
    assert client.model(model).serving_revision.revision == 2


def test_too_many_conflicts_fail_before_solving(client: Client, model: str) -> None:
    """With ``max_conflicts`` the operation ends before it solves, and names the images."""
    options = change_pb.ChangeOptions(gate=change_pb.Gate(max_conflicts=1))
    finished = wait(client, client.add_class(model, "violet", VIOLETS + BLUES[:2], options=options))
    assert finished.HasField("error")
    error = failure(lambda: result(finished))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "LABEL_CONFLICTS")
    assert BLUES[0][0] in str(error)
    assert list(client.model(model).revisions) == [1]


CHANGES: dict[str, Callable[[Client, str], operations_pb2.Operation]] = {
    "add_class": lambda client, model: client.add_class(model, "violet", VIOLETS, options=VALIDATE),
    "add_examples": lambda client, model: client.add_examples(
        model, "blue", NEW_BLUES, options=VALIDATE
    ),
    "add_classes": lambda client, model: client.add_classes(
        model, {"violet": VIOLETS, "blue": NEW_BLUES}, options=VALIDATE
    ),
    "remove_class": lambda client, model: client.remove_class(model, "blue", options=VALIDATE),
    "rename_class": lambda client, model: client.rename_class(
        model, "blue", "azure", options=VALIDATE
    ),
    "retrain": lambda client, model: client.retrain(model, options=VALIDATE),
}
EXPECTED = {
    "add_class": [*LABELS, "violet"],
    "add_examples": LABELS,
    "add_classes": [*LABELS, "violet"],
    "remove_class": ["amber", "crimson", "green"],
    "rename_class": ["amber", "azure", "crimson", "green"],
    "retrain": LABELS,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_validate_only_predicts_labels_and_metrics(client: Client, model: str, kind: str) -> None:
    """For every kind of change labels and metrics are predicted, and nothing is published."""
    finished = wait(client, CHANGES[kind](client, model))
    metadata, response = progress(finished), result(finished)
    assert change_pb.ChangeKind.Name(metadata.kind) == f"CHANGE_KIND_{kind.upper()}"
    assert metadata.validate_only
    assert (response.revision.name, response.revision.revision) == ("", 0)
    assert list(response.revision.labels) == EXPECTED[kind]
    assert response.revision.metrics.accuracy > 0.9
    assert response.HasField("comparison")
    assert list(client.model(model).revisions) == [1]


def test_validate_only_reports_failures_of_the_gate(client: Client, model: str) -> None:
    """The response has the gate's reasons, and the operation succeeds."""
    response = response_to(client, client.add_class(model, "violet", BLUES, options=VALIDATE))
    assert response.gate_failures
    assert response.findings
    assert list(client.model(model).revisions) == [1]


def test_a_change_of_an_outdated_revision_is_aborted(client: Client, model: str) -> None:
    """If two changes expect revision 1, the later one ends with ABORTED."""
    accepted = [
        client.rename_class(model, label, f"{label} 2", options=expecting(1))
        for label in LABELS[:2]
    ]
    ends = [wait(client, operation) for operation in accepted]
    assert result(ends[0]).revision.revision == 2
    error = failure(lambda: result(ends[1]))
    assert (error.code, error.reason) == ("ABORTED", "REVISION_CHANGED")
    assert list(client.model(model).revisions) == [1, 2]


def test_rollback_serves_the_earlier_one(client: Client, add_class: AddClass, model: str) -> None:
    """After Rollback the earlier revision answers at once, and a later change starts from it."""
    operation = add_class(model, "violet", VIOLETS)
    described = client.rollback(model, expected_revision=2)
    assert described.serving_revision.revision == 1
    assert client.classify(model, [picture("blue", 60)]).revision == 1
    latest, before, _ = described.moves
    assert (latest.cause, latest.revision, latest.previous_revision) == ("rollback", 1, 2)
    assert (before.cause, before.operation) == ("add_class", operation.name)
    assert client.rollback(model).serving_revision.revision == 2
    client.rollback(model, 1)
    response = result(add_class(model, "teal", VIOLETS))
    assert (response.revision.revision, response.revision.parent_revision) == (3, 1)
    assert list(response.revision.labels) == sorted([*LABELS, "teal"])


def test_validated_rollback_moves_nothing(client: Client, add_class: AddClass, model: str) -> None:
    """Rollback with ``validate_only`` leaves the serving revision."""
    add_class(model, "violet", VIOLETS)
    described = client.rollback(model, 1, validate_only=True)
    assert (described.serving_revision.revision, len(described.moves)) == (2, 2)


def test_pin_revision_pins_and_unpins(client: Client, model: str) -> None:
    """PinRevision changes the model's pins, with ``unpin`` too, but not with ``validate_only``."""
    assert list(client.pin_revision(model, 1, validate_only=True).pinned_revisions) == []
    assert list(client.pin_revision(model, 1).pinned_revisions) == [1]
    assert list(client.model(model).pinned_revisions) == [1]
    assert list(client.pin_revision(model, 1, unpin=True).pinned_revisions) == []


def test_revisions_are_listed_newest_first(
    server: Running, client: Client, add_class: AddClass, model: str
) -> None:
    """Each revision has its change and its parent, a damaged revision only its number."""
    add_class(model, "violet", VIOLETS)
    response_to(client, client.rename_class(model, "violet", "mauve"))
    revisions = list(client.revisions(model))
    assert [revision.revision for revision in revisions] == [3, 2, 1]
    assert [revision.change for revision in revisions] == ["rename_class", "add_class", "fit"]
    assert [revision.parent_revision for revision in revisions] == [2, 1, 0]
    (server.repository / "models" / model / "2" / "manifest.json").write_bytes(b"{")
    _, damaged, _ = client.revisions(model)
    assert damaged.name == f"models/{model}/revisions/2"
    assert not damaged.labels
