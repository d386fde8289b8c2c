"""ReviewService of a real server: a policy, candidates, groups, labels and corrections."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from support import servers, tiny
from support.pictures import picture, pictures
from support.servers import Command, Running

from topwork import CallFailed, Client
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import review_service_pb2 as review_pb

ANY = change_pb.ChangeOptions(gate=change_pb.Gate(max_old_class_drop=1.0, min_new_class_recall=0.0))
VIOLETS = pictures("violet", 8, start=200)
EVERYTHING = review_pb.ReviewPolicy(
    enabled=True, images_per_day=2000, max_margin=1.0, random_share=0.0
)


def directory(server: Running, model: str) -> Path:
    """Return the directory of a model's candidates."""
    return server.repository / "models" / model / "review"


def stream(client: Client, model: str, images: list[bytes]) -> list[str]:
    """Classify images, wait until they are candidates, and return their answers' ids."""
    before = client.review_policy(model).candidates
    results = client.classify(model, images).results
    servers.eventually(lambda: client.review_policy(model).candidates == before + len(images))
    return [result.answer_id for result in results]


def digests(client: Client, model: str, wanted: str = "") -> list[str]:
    """Return the digests of a list."""
    return [row.digest for row in client.list_candidates(model, wanted)]


def finish(client: Client, model: str, labels: dict[str, str | None], **given: Any) -> list[str]:
    """Label candidates, and return the names of the operations once they are finished."""
    operations = client.label_candidates(model, labels, options=ANY, **given)
    for operation in operations:
        *_, finished = client.watch(operation.name)
        finished.result()
    return [operation.name for operation in operations]


@pytest.fixture
def reviewed(model: str, client: Client) -> str:
    """Return a new model whose policy keeps every image."""
    client.update_review_policy(model, EVERYTHING)
    return model


def test_nothing_is_kept_by_default(server: Running, client: Client, model: str) -> None:
    """Without a policy answers have no id, and the repository has no new name."""
    policy = client.review_policy(model)
    assert (policy.enabled, policy.images_per_day, policy.ttl.seconds) == (False, 100, 30 * 86400)
    names = sorted(path.name for path in directory(server, model).parent.iterdir())
    (result,) = client.classify(model, [VIOLETS[0]]).results
    assert result.answer_id == ""
    assert sorted(path.name for path in directory(server, model).parent.iterdir()) == names
    assert [*client.list_candidates(model)] == []
    assert client.candidate_groups(model) == []


def test_new_class_shows_itself_and_is_learnt_from_its_group(
    server: Running, client: Client, reviewed: str, topwork: Command
) -> None:
    """Unknown images are one group; one command makes it a class, and the queue is empty."""
    stream(client, reviewed, VIOLETS)
    (group,) = client.candidate_groups(reviewed)
    assert group.size >= 6
    assert len(group.examples) == 5
    assert all(row.preview for row in group.examples)
    status, output, _ = topwork("review groups", reviewed)
    assert (status, f"{group.size} images that look alike" in output) == (0, True)
    status, output, _ = topwork(
        "review label", reviewed, "--group", group.id, "--as", "violet",
        "--max-old-class-drop", "1", "--json",
    )  # fmt: skip
    assert (status, json.loads(output)["revision"]) == (0, 2)
    assert len([*client.list_examples(reviewed, 'label = "violet"')]) == group.size
    assert client.candidate_groups(reviewed) == []
    assert len(digests(client, reviewed)) == 8 - group.size
    assert client.review_policy(reviewed).kept_today == 8
    assert client.predict(reviewed, [picture("violet", 300)])[0].predictions[0].label == "violet"
    gone = [path for path in directory(server, reviewed).iterdir() if path.suffix == ".gone"]
    assert len(gone) == group.size
    assert all(path.stat().st_size == 0 for path in gone)


def test_candidate_has_its_image_and_the_answer_of_now(client: Client, reviewed: str) -> None:
    """GetCandidate returns the bytes that were classified; lists are in pages."""
    stream(client, reviewed, [VIOLETS[0], *pictures("blue", 2, start=90)])
    rows = [*client.list_candidates(reviewed, previews=True)]
    assert len(rows) == 3
    assert all(row.preview and not row.image for row in rows)
    images = {client.get_candidate(reviewed, row.digest).image for row in rows}
    assert images == {VIOLETS[0], *pictures("blue", 2, start=90)}
    assert [row.usefulness for row in rows] == sorted(
        (row.usefulness for row in rows), reverse=True
    )
    label = rows[0].classification.predictions[0].label
    assert rows[0].digest in digests(client, reviewed, f"label = {label}")
    assert digests(client, reviewed, "label = green") == []


def test_correction_is_taught_with_its_label(
    client: Client, reviewed: str, topwork: Command
) -> None:
    """CorrectAnswer suggests a label, the last one wins, and one command teaches all of them."""
    (answer,) = stream(client, reviewed, [VIOLETS[0]])
    client.correct_answer(reviewed, answer, "green")
    found = client.correct_answer(reviewed, answer, "blue")
    assert found.reason == review_pb.CANDIDATE_REASON_CORRECTED
    assert found.image == VIOLETS[0]
    assert [row.suggested_label for row in client.list_candidates(reviewed)] == ["blue"]
    status, output, _ = topwork(
        "review label", reviewed, "--suggested", "--max-old-class-drop", "1", "--json"
    )
    assert (status, json.loads(output)["kind"]) == (0, "add_examples")
    assert client.get_example(reviewed, found.digest).label == "blue"
    with pytest.raises(CallFailed, match="is not known") as failed:
        client.correct_answer("colours", answer, "blue")
    assert failed.value.reason == "ANSWER_UNKNOWN"


def test_several_labels_and_discards_are_one_call_that_may_be_repeated(
    client: Client, reviewed: str
) -> None:
    """The same request id gives the same operations, also after the candidates are gone."""
    stream(client, reviewed, [*VIOLETS[:2], *pictures("zircon", 2, start=80)])
    first, second, third, fourth = digests(client, reviewed)
    labels = {first: "blue", second: "green", third: "blue", fourth: None}
    request_id = str(uuid.uuid4())
    names = finish(client, reviewed, labels, request_id=request_id)
    assert len(names) == 1
    assert digests(client, reviewed) == []
    assert finish(client, reviewed, labels, request_id=request_id) == names
    assert client.get_example(reviewed, second).label == "green"
    with pytest.raises(CallFailed) as failed:
        client.label_candidates(reviewed, {first: "blue"})
    assert failed.value.code == "NOT_FOUND"


def test_candidates_return_to_the_queue_when_the_operation_fails(
    client: Client, reviewed: str
) -> None:
    """A gate that refuses the revision loses no candidate."""
    stream(client, reviewed, pictures("blue", 5, start=90))
    before = digests(client, reviewed)
    strict = change_pb.ChangeOptions(gate=change_pb.Gate(min_new_class_recall=1.0))
    labels = dict.fromkeys(before, "azure")
    (operation,) = client.label_candidates(reviewed, labels, options=strict)
    *_, finished = client.watch(operation.name)
    with pytest.raises(CallFailed) as failed:
        finished.result()
    assert failed.value.reason == "GATE_FAILED"
    assert sorted(digests(client, reviewed, "claimed = false")) == sorted(before)


@pytest.mark.parametrize(
    ("labels", "code", "message"),
    [
        ({"0" * 64: "blue"}, "NOT_FOUND", "has no candidate 000"),
        ({"../../secret": "blue"}, "INVALID_ARGUMENT", "is not an image digest"),
        ({}, "INVALID_ARGUMENT", "must name 1 to 400"),
        ({"0" * 64: "a\u200bb"}, "INVALID_ARGUMENT", "invisible"),
        ({"0" * 64: ""}, "INVALID_ARGUMENT", "the label is empty"),
        ({"0" * 64: "mauve"}, "FAILED_PRECONDITION", "has 1 candidates; it needs 5"),
        ({"0" * 64: None}, "NOT_FOUND", "has no candidate 000"),
    ],
)
def test_wrong_decision_is_refused(
    client: Client, labels: dict[str, str | None], code: str, message: str
) -> None:
    """The error names what is wrong, and nothing changes."""
    with pytest.raises(CallFailed, match=message) as failed:
        client.label_candidates("colours", labels)
    assert failed.value.code == code


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (review_pb.ReviewPolicy(images_per_day=0), "images_per_day is 0; it must be 1 to 2000"),
        (review_pb.ReviewPolicy(max_margin=float("nan")), "max_margin is nan"),
        (review_pb.ReviewPolicy(max_bytes=1), "max_bytes is 1"),
    ],
)
def test_wrong_policy_is_refused(
    server: Running, client: Client, policy: review_pb.ReviewPolicy, message: str
) -> None:
    """A value out of range is named, and no file is written."""
    with pytest.raises(CallFailed, match=message):
        client.update_review_policy("colours", policy)
    assert not (server.repository / "models" / "colours" / "review.json").exists()


def test_second_server_follows_the_policy_and_shares_the_queue(
    server: Running, client: Client, reviewed: str
) -> None:
    """Both list the candidates of both; an answer is known to the server that gave it only."""
    with (
        servers.running(server.repository, worker=False) as other,
        Client(other.address) as second,
    ):
        (answer,) = stream(second, reviewed, [VIOLETS[3]])
        assert digests(client, reviewed) == digests(second, reviewed)
        with pytest.raises(CallFailed, match="this server must have given it"):
            client.correct_answer(reviewed, answer, "blue")
        client.update_review_policy(reviewed, review_pb.ReviewPolicy(enabled=False))
        servers.eventually(lambda: not second.classify(reviewed, [VIOLETS[4]]).results[0].answer_id)
    assert len(digests(client, reviewed)) >= 1


def test_candidate_that_an_operation_learns_is_claimed(
    idle: Running, four_colours: Exemplars
) -> None:
    """Without a worker the operation waits: the same label joins it, another one is refused."""
    tiny.publish(Repository(idle.repository), "claims", four_colours)
    with Client(idle.address) as client:
        servers.eventually(lambda: "models/claims" in {model.name for model in client.models()})
        client.update_review_policy("claims", EVERYTHING)
        stream(client, "claims", VIOLETS[:2])
        first, second = digests(client, "claims")
        (operation,) = client.label_candidates("claims", {first: "blue"})
        (again,) = client.label_candidates("claims", {first: "blue"})
        assert again.name == operation.name
        rows = [*client.list_candidates("claims")]
        assert [(row.digest, row.label) for row in rows] == [(second, ""), (first, "blue")]
        for label in ("green", None):
            with pytest.raises(CallFailed, match="learns candidate") as failed:
                client.label_candidates("claims", {second: "blue", first: label})
            assert failed.value.reason == "CANDIDATE_CLAIMED"
        assert digests(client, "claims", "claimed = true") == [first]
        client.cancel(operation.name)
        assert digests(client, "claims", "claimed = true") == []


def test_copied_model_has_no_policy_and_no_candidates(client: Client, reviewed: str) -> None:
    """Images of one model's callers do not go to another model."""
    stream(client, reviewed, [VIOLETS[5]])
    client.copy_model(reviewed, f"{reviewed}-copy")
    assert not client.review_policy(f"{reviewed}-copy").enabled
    assert digests(client, f"{reviewed}-copy") == []


def test_unreadable_and_preprocessed_images_are_not_offered(client: Client, reviewed: str) -> None:
    """An image with an error has no id; its neighbours have."""
    results = client.classify(reviewed, [b"no image", VIOLETS[6]]).results
    assert results[0].answer_id == ""
    assert len(results[1].answer_id) == 32


def test_commands(topwork: Command, client: Client, reviewed: str, tmp_path: Path) -> None:
    """`review policy`, `list`, `show`, `correct` and `discard`."""
    status, output, _ = topwork("review policy", reviewed, "--ttl", "12h", "--json")
    assert (status, json.loads(output)["ttl_seconds"]) == (0, 43200)
    status, _, errors = topwork("review policy", reviewed, "--ttl", "soon")
    assert (status, "'soon' is not a time such as 12h or 30d" in errors) == (2, True)
    (answer,) = stream(client, reviewed, [VIOLETS[7]])
    status, output, _ = topwork("review list", reviewed)
    digest = output.splitlines()[1].split()[0]
    photo = tmp_path / "photo.png"
    status, output, _ = topwork("review show", reviewed, digest, "--save", photo, "--json")
    assert (status, photo.read_bytes()) == (0, VIOLETS[7])
    status, output, _ = topwork("review correct", reviewed, answer, "--as", "green")
    assert (status, output.strip()) == (0, json.loads(output_of(topwork, reviewed))["digest"])
    status, output, _ = topwork("review discard", reviewed, digest)
    assert (status, output) == (0, "discarded 1 candidates\n")
    assert digests(client, reviewed) == []


def output_of(topwork: Command, model: str) -> str:
    """Return the list of a model's candidates as JSON lines."""
    _, output, _ = topwork("review list", model, "--json")
    return output
