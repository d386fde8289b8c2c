"""A live model is changed in every way there is, and back."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.longrunning import operations_pb2
from support.pictures import picture, pictures
from support.servers import Running, Teach, failure, fields

from topwork import CallFailed, Client, progress, rejected, result
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.v1 import change_pb2 as change_pb

LABELS = ["amber", "blue", "crimson", "green"]
VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]
BLUES = [(f"blue-{n}.png", content) for n, content in enumerate(pictures("blue", 20))]
"""Those that the model has been fitted on."""
NEW_BLUES = [(f"new-{n}.png", one) for n, one in enumerate(pictures("blue", 6, start=200))]


def ended(client: Client, accepted: operations_pb2.Operation) -> operations_pb2.Operation:
    """Return an operation when it is finished."""
    *_, finished = client.watch(accepted.name)
    return finished


def done(client: Client, accepted: operations_pb2.Operation) -> change_pb.ChangeResponse:
    """Return what a change gave."""
    return result(ended(client, accepted))


def refused(client: Client, accepted: operations_pb2.Operation) -> CallFailed:
    """Return why a change failed."""
    return failure(lambda: done(client, accepted))


def only(revision: int) -> change_pb.ChangeOptions:
    """Return the condition that ``revision`` serves."""
    return change_pb.ChangeOptions(expected_revision=revision)


VALIDATE = change_pb.ChangeOptions(validate_only=True)


def test_more_images_of_a_label_are_learnt(client: Client, model: str) -> None:
    """AddExamples learns what is new and names what the label has; its labels stay."""
    response = done(client, client.add_examples(model, "blue", BLUES[:3] + NEW_BLUES))
    assert (response.revision.revision, response.images_used) == (2, 6)
    assert [one.display_name for one in response.skipped_images] == [name for name, _ in BLUES[:3]]
    assert response.revision.change == "add_examples"
    assert list(response.revision.labels) == LABELS
    counts = {one.label: one.images for one in response.revision.metrics.per_label}
    assert counts == {"amber": 20, "blue": 26, "crimson": 20, "green": 20}
    assert response.comparison.taught.label == "blue"


def test_images_that_are_there_make_no_revision(client: Client, model: str) -> None:
    """When the label has all images already the answer is the revision that serves."""
    response = done(client, client.add_examples(model, "blue", BLUES[:3]))
    assert (response.revision.revision, response.images_used) == (1, 0)
    assert len(response.skipped_images) == 3
    assert not response.HasField("comparison")
    assert list(client.model(model).revisions) == [1]


def test_a_removed_label_is_forgotten(client: Client, teach: Teach, model: str) -> None:
    """After AddClass and RemoveClass the head is, byte for byte, what it was before."""
    first = client.model(model).serving_revision
    teach(model, "violet", VIOLETS)
    response = done(client, client.remove_class(model, "violet"))
    assert (response.revision.revision, response.revision.parent_revision) == (3, 2)
    assert list(response.revision.labels) == LABELS
    assert response.revision.metrics == first.metrics
    photos = [picture(label, 60) for label in LABELS]
    now = client.classify(model, photos)
    assert now.revision == 3
    assert now.results == client.classify(model, photos, revision=1).results


def test_two_labels_must_remain(client: Client, model: str) -> None:
    """RemoveClass of the last label but one is refused, and says so."""
    for label in LABELS[:2]:
        done(client, client.remove_class(model, label))
    error = failure(lambda: client.remove_class(model, "green"))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_FEW_LABELS")


def test_a_renamed_label_is_called_so(client: Client, model: str) -> None:
    """RenameClass changes the label and nothing that was learnt."""
    before = client.classify(model, [picture("blue", 60)], top_k=4).results[0]
    response = done(client, client.rename_class(model, "blue", "azure"))
    assert list(response.revision.labels) == ["amber", "azure", "crimson", "green"]
    after = client.classify(model, [picture("blue", 60)], top_k=4).results[0]
    renamed = {
        "azure" if one.label == "blue" else one.label: one.probability for one in before.predictions
    }
    assert after.predictions[0].label == "azure"
    assert {one.label: one.probability for one in after.predictions} == pytest.approx(
        renamed, abs=1e-5
    )


def test_an_invisible_label_of_an_old_model_can_be_renamed(
    client: Client, serve: Callable[[Exemplars], str], four_colours: Exemplars
) -> None:
    """Earlier versions let such labels in: the model answers, and the label can be renamed."""
    old = replace(four_colours, labels=("amber", "blue", "crimson", "\u3164"))
    model = serve(old)
    (answer,) = client.classify(model, [picture("green", 60)], top_k=1).results
    assert answer.predictions[0].label == "\u3164"
    response = done(client, client.rename_class(model, "\u3164", "green"))
    assert list(response.revision.labels) == LABELS
    error = failure(lambda: client.rename_class(model, "green", "\u3164"))
    assert (error.reason, fields(error)) == ("LABEL_INVALID", ["new_label"])


def test_another_head_is_solved(client: Client, model: str) -> None:
    """Retrain solves the kind of head that is asked for, and later changes keep to it."""
    response = done(client, client.retrain(model, head="nearest_mean"))
    assert response.revision.head.kind == "nearest_mean"
    assert response.revision.head.normalisation == "sqrt_l2"
    response = done(client, client.add_class(model, "violet", VIOLETS))
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
        lambda client, model: client.remove_class(model, "blue", options=only(-1)),
        "INVALID_ARGUMENT",
        "expected_revision is -1",
    ),
    "no UUID": (
        lambda client, model: client.retrain(model, request_id="7"),
        "INVALID_ARGUMENT",
        "no UUID",
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
        lambda client, model: client.retrain(model, options=only(7)),
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
def test_what_cannot_be_done_is_refused_at_once(client: Client, case: str) -> None:
    """Each impossible change has its code, names what is wrong, and changes nothing."""
    call, code, said = WRONG[case]
    error = failure(lambda: call(client, "colours"))
    assert error.code == code
    assert said in str(error)
    found = client.model("colours")
    assert (list(found.revisions), list(found.pinned_revisions)) == ([1], [])


def test_a_field_that_is_wrong_is_named(client: Client) -> None:
    """INVALID_ARGUMENT names the field as the contract has it."""
    gate = change_pb.Gate(max_conflicts=-1)
    options = change_pb.ChangeOptions(gate=gate)
    error = failure(lambda: client.retrain("colours", options=options))
    assert fields(error) == ["options.gate.max_conflicts"]
    error = failure(lambda: client.add_class("colours", "violet", VIOLETS, options=options))
    assert fields(error) == ["config.options.gate.max_conflicts"]


def test_a_repeated_change_is_the_same_operation(client: Client, model: str) -> None:
    """One request id is one removal; for something else it is ALREADY_EXISTS."""
    request_id = str(uuid.uuid4())
    finished = ended(client, client.remove_class(model, "blue", request_id=request_id))
    assert client.remove_class(model, "blue", request_id=request_id) == finished
    assert list(client.model(model).revisions) == [1, 2]
    error = failure(lambda: client.remove_class(model, "green", request_id=request_id))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


def test_a_harmful_change_never_serves(server: Running, client: Client, model: str) -> None:
    """A known class under a new label is rejected with the numbers; its report is published."""
    error = refused(client, client.add_class(model, "violet", BLUES))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "GATE_FAILED")
    comparison = rejected(error)
    assert comparison is not None
    assert comparison.drop > 0.02
    assert {(one.label, one.called) for one in comparison.confusions} & {
        ("blue", "violet"),
        ("violet", "blue"),
    }
    found = client.model(model)
    assert (found.serving_revision.revision, list(found.revisions)) == (1, [1, 2])
    newest, _ = client.revisions(model)
    assert newest.rejection
    assert all(why in str(error) for why in newest.rejection)
    assert newest.comparison == comparison
    report = Repository(server.repository).report
    assert b"rejected" in report(Repository(server.repository).manifest(model, 2))
    again = failure(lambda: client.rollback(model, 2))
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "REVISION_REJECTED")


def test_who_wants_it_all_the_same_may_have_it(client: Client, model: str) -> None:
    """With a gate that lets everything through the same change serves."""
    gate = change_pb.Gate(max_old_class_drop=1, min_new_class_recall=0)
    options = change_pb.ChangeOptions(gate=gate)
    response = done(client, client.add_class(model, "violet", BLUES, options=options))
    assert response.revision.revision == 2
    assert {one.label for one in response.conflicts} == {"blue"}
    assert client.model(model).serving_revision.revision == 2


def test_conflicts_are_told_before_anything_is_learnt(client: Client, model: str) -> None:
    """With ``max_conflicts`` the operation ends before it solves, and names the images."""
    options = change_pb.ChangeOptions(gate=change_pb.Gate(max_conflicts=1))
    finished = ended(
        client, client.add_class(model, "violet", VIOLETS + BLUES[:2], options=options)
    )
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
    "remove_class": lambda client, model: client.remove_class(model, "blue", options=VALIDATE),
    "rename_class": lambda client, model: client.rename_class(
        model, "blue", "azure", options=VALIDATE
    ),
    "retrain": lambda client, model: client.retrain(model, options=VALIDATE),
}
EXPECTED = {
    "add_class": [*LABELS, "violet"],
    "add_examples": LABELS,
    "remove_class": ["amber", "crimson", "green"],
    "rename_class": ["amber", "azure", "crimson", "green"],
    "retrain": LABELS,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_validating_says_what_would_come_of_it(client: Client, model: str, kind: str) -> None:
    """Labels and metrics are predicted, and nothing is published, for every kind of change."""
    finished = ended(client, CHANGES[kind](client, model))
    metadata, response = progress(finished), result(finished)
    assert change_pb.ChangeKind.Name(metadata.kind) == f"CHANGE_KIND_{kind.upper()}"
    assert metadata.validate_only
    assert (response.revision.name, response.revision.revision) == ("", 0)
    assert list(response.revision.labels) == EXPECTED[kind]
    assert response.revision.metrics.accuracy > 0.9
    assert response.HasField("comparison")
    assert list(client.model(model).revisions) == [1]


def test_validating_says_that_the_gate_would_reject(client: Client, model: str) -> None:
    """The reasons are told, and that is a success: nobody asked for more."""
    response = done(client, client.add_class(model, "violet", BLUES, options=VALIDATE))
    assert response.gate_failures
    assert response.findings
    assert list(client.model(model).revisions) == [1]


def test_a_change_of_another_revision_is_stale(client: Client, model: str) -> None:
    """Of two changes that both expect revision 1 the one that comes later ends with ABORTED."""
    accepted = [client.rename_class(model, one, f"{one} 2", options=only(1)) for one in LABELS[:2]]
    ends = [ended(client, one) for one in accepted]
    assert result(ends[0]).revision.revision == 2
    error = failure(lambda: result(ends[1]))
    assert (error.code, error.reason) == ("ABORTED", "REVISION_CHANGED")
    assert list(client.model(model).revisions) == [1, 2]


def test_an_earlier_revision_serves_again(client: Client, teach: Teach, model: str) -> None:
    """After Rollback its answers come at once, and a later change is made from it."""
    operation = teach(model, "violet", VIOLETS)
    found = client.rollback(model, expected_revision=2)
    assert found.serving_revision.revision == 1
    assert client.classify(model, [picture("blue", 60)]).revision == 1
    latest, before, _ = found.moves
    assert (latest.cause, latest.revision, latest.previous_revision) == ("rollback", 1, 2)
    assert (before.cause, before.operation) == ("add_class", operation.name)
    assert client.rollback(model).serving_revision.revision == 2
    client.rollback(model, 1)
    response = result(teach(model, "teal", VIOLETS))
    assert (response.revision.revision, response.revision.parent_revision) == (3, 1)
    assert list(response.revision.labels) == sorted([*LABELS, "teal"])


def test_a_rollback_may_be_validated(client: Client, teach: Teach, model: str) -> None:
    """With ``validate_only`` nothing moves."""
    teach(model, "violet", VIOLETS)
    found = client.rollback(model, 1, validate_only=True)
    assert (found.serving_revision.revision, len(found.moves)) == (2, 2)


def test_a_revision_is_pinned_and_let_go(client: Client, model: str) -> None:
    """PinRevision is told with the model; validated only it changes nothing; so is letting go."""
    assert list(client.pin_revision(model, 1, validate_only=True).pinned_revisions) == []
    assert list(client.pin_revision(model, 1).pinned_revisions) == [1]
    assert list(client.model(model).pinned_revisions) == [1]
    assert list(client.pin_revision(model, 1, unpin=True).pinned_revisions) == []


def test_revisions_are_listed_newest_first(
    server: Running, client: Client, teach: Teach, model: str
) -> None:
    """Each has what made it and from what; one that is damaged has its number and no more."""
    teach(model, "violet", VIOLETS)
    done(client, client.rename_class(model, "violet", "mauve"))
    newest, second, first = client.revisions(model)
    assert [one.revision for one in (newest, second, first)] == [3, 2, 1]
    assert [one.change for one in (newest, second, first)] == ["rename_class", "add_class", "fit"]
    assert [one.parent_revision for one in (newest, second, first)] == [2, 1, 0]
    (server.repository / "models" / model / "2" / "manifest.json").write_bytes(b"{")
    _, damaged, _ = client.revisions(model)
    assert damaged.name == f"models/{model}/revisions/2"
    assert not damaged.labels
