"""Models that are born over the wire: a server and its worker, without a trainer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import servers, tiny
from support.pictures import picture, pictures
from support.servers import Command, Running, failure
from support.signed import new_key, public

from topwork import CallFailed, Client
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.v1 import change_pb2 as change_pb

LABELS = ("amber", "blue", "crimson", "green", "violet")
PHOTOS = {
    label: [(f"{label}-{n}.png", content) for n, content in enumerate(pictures(label, 12))]
    for label in LABELS
}
DEATHS = (
    "topwork.bundle.store:Repository.put_shard",
    "topwork.changes.worker:DBOS.set_event=result",
    "topwork.bundle.store:Repository.set_draft",
    "topwork.bundle.store:Repository.publish",
    "topwork.bundle.store:Repository.set_serving",
)


def with_backbone(root: Path) -> Repository:
    """Return a repository that has a backbone and nothing else."""
    made = Repository(root)
    model = tiny.backbone_model()
    made.put_backbone(model, tiny.backbone_info(model))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server whose repository begins with a backbone alone."""
    made = with_backbone(tmp_path_factory.mktemp("born") / "repository")
    with servers.running(made.root) as started:
        yield started


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    """Yield a client of the server."""
    with Client(server.address) as made:
        yield made


def add(client: Client, model: str, label: str) -> change_pb.ChangeResponse:
    """Add a class and return the result."""
    *_, last = client.watch(client.add_class(model, label, PHOTOS[label]).name)
    return last.result()


def fit(labels: tuple[str, ...], seed: int = 0) -> bytes:
    """Return the head of a fit on the photos of labels."""
    images = {label: [content for _, content in PHOTOS[label]] for label in labels}
    with TemporaryDirectory() as directory:
        made = Repository(Path(directory))
        return made.head(tiny.publish(made, "m", tiny.embed_pictures(images), seed=seed))


def head(server: Running, model: str) -> bytes:
    """Return the serving head of a model."""
    repository = Repository(server.repository)
    return repository.head(repository.manifest(model, repository.serving(model)))


def test_four_flowers_then_a_fifth(server: Running, client: Client) -> None:
    """Create, four labels, classify, the fifth: each head is that of a fit on the same photos."""
    created = client.create_model("story", seed=4, head="logistic", normalisation="sqrt_l2")
    assert (created.draft.missing_labels, created.draft.backbone.name) == (2, "tiny")
    assert not created.HasField("serving_revision")
    for number, label in enumerate(LABELS, 1):
        photo = [picture(label, 40)]
        if number < 3:
            error = failure(lambda: client.classify("story", photo))  # noqa: B023  # called at once
            assert (error.code, error.reason) == ("FAILED_PRECONDITION", "MODEL_NOT_READY")
            missing = 3 - number
            assert f"{missing} more {'is' if missing == 1 else 'are'} needed" in str(error)
        response = add(client, "story", label)
        assert response.images_used == 12
        assert response.missing_labels == max(0, 2 - number)
        assert response.revision.revision == max(0, number - 1)
        if number > 1:
            assert head(server, "story") == fit(LABELS[:number], seed=4)
            assert client.classify("story", photo).results[0].predictions[0].label == label
    assert list(client.model("story").revisions) == [1, 2, 3, 4]


def test_worker_that_dies_after_each_step_keeps_every_label_once(tmp_path: Path) -> None:
    """Kill -9 after each write of the first and the second label: one draft, one revision."""
    made = with_backbone(tmp_path / "repository")
    with servers.running(made.root, deaths=DEATHS) as started, Client(started.address) as client:
        client.create_model("m", head="logistic", normalisation="sqrt_l2")
        assert add(client, "m", "amber").missing_labels == 1
        assert list(client.model("m").draft.labels) == ["amber"]
        assert made.draft("m").images == 12
        assert add(client, "m", "blue").revision.revision == 1
        deaths = [entry["event"] for entry in started.log_entries].count("worker died")
        assert deaths == len(DEATHS)
        assert list(client.model("m").revisions) == [1]
        assert head(started, "m") == fit(("amber", "blue"))
        assert not [problem for problem in check(made) if problem.severity == "error"]


def test_cancel_after_the_label_was_kept_has_no_effect(tmp_path: Path) -> None:
    """An operation that is cancelled after it has changed the draft succeeds."""
    made = with_backbone(tmp_path / "repository")
    deaths = ["topwork.bundle.store:Repository.set_draft"]
    with servers.running(made.root, deaths=deaths) as started, Client(started.address) as client:
        client.create_model("m")
        accepted = client.add_class("m", "amber", PHOTOS["amber"])
        started.log_entry("worker died")
        client.cancel(accepted.name)
        *_, last = client.watch(accepted.name)
        assert last.result().missing_labels == 1
        assert made.draft("m").labels == ("amber",)


def test_drafts_are_listed_and_changed(client: Client) -> None:
    """ListModels has drafts; labels of a draft are removed and renamed; Retrain must wait."""
    client.create_model("listed")
    add(client, "listed", "amber")
    *_, renamed = client.watch(client.rename_class("listed", "amber", "ochre").name)
    assert renamed.result().missing_labels == 1
    (listed,) = [model for model in client.models() if model.name == "models/listed"]
    assert (list(listed.draft.labels), listed.draft.images) == (["ochre"], 12)
    for call in (
        lambda: client.retrain("listed"),
        lambda: client.rollback("listed"),
        lambda: client.pin_revision("listed", 1),
        lambda: client.copy_model("listed", "copied"),
    ):
        assert failure(call).reason == "MODEL_NOT_READY"
    assert list(client.revisions("listed")) == []
    *_, removed = client.watch(client.remove_class("listed", "ochre").name)
    assert removed.result().missing_labels == 2


def test_copy_serves_and_lives_on_its_own(server: Running, client: Client) -> None:
    """A copy answers as its source, and a class that it learns is its own."""
    client.create_model("source")
    for label in LABELS[:2]:
        add(client, "source", label)
    copy = client.copy_model("source", "copy")
    assert (copy.serving_revision.revision, copy.serving_revision.change) == (1, "copy")
    photo = [picture("amber", 40)]
    assert (
        client.classify("copy", photo).results[0].predictions
        == client.classify("source", photo).results[0].predictions
    )
    assert head(server, "copy") == head(server, "source")
    add(client, "copy", "crimson")
    assert list(client.model("copy").serving_revision.labels) == ["amber", "blue", "crimson"]
    assert list(client.model("source").serving_revision.labels) == ["amber", "blue"]


def test_delete_and_undelete(client: Client) -> None:
    """A model in use needs force; then it is gone at once, and comes back as it was."""
    client.create_model("gone")
    for label in LABELS[:2]:
        add(client, "gone", label)
    photo = [picture("amber", 40)]
    client.classify("gone", photo)
    assert failure(lambda: client.delete_model("gone")).reason == "MODEL_IN_USE"
    client.delete_model("gone", force=True)
    for call in (
        lambda: client.classify("gone", photo),
        lambda: client.model("gone"),
        lambda: client.add_class("gone", "crimson", PHOTOS["crimson"]),
        lambda: client.delete_model("gone"),
    ):
        assert failure(call).code == "NOT_FOUND"
    error = failure(lambda: client.create_model("gone"))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "MODEL_DELETED")
    assert [op for op in client.operations('model = "models/gone"') if op.done]
    assert client.undelete_model("gone").serving_revision.revision == 1
    assert client.classify("gone", photo).revision == 1
    assert failure(lambda: client.undelete_model("gone")).code == "NOT_FOUND"


def test_unfinished_change_of_a_deleted_model_fails(tmp_path: Path) -> None:
    """Its operation ends with NOT_FOUND and the reason; no directory is left behind."""
    made = with_backbone(tmp_path / "repository")
    with servers.running(made.root, worker=False) as started, Client(started.address) as client:
        client.create_model("m")
        waiting = client.add_class("m", "amber", PHOTOS["amber"])
        client.delete_model("m")
    with servers.running(made.root) as started, Client(started.address) as client:
        *_, last = client.watch(waiting.name)
        error = failure(last.result)
        assert (error.code, error.reason) == ("NOT_FOUND", "MODEL_DELETED")
    assert made.model_names() == []


def test_one_of_racing_creations_succeeds(client: Client) -> None:
    """Eight calls at once make one model; with one request id all succeed."""

    def create(name: str, request_id: str) -> str:
        try:
            return client.create_model(name, request_id=request_id).name
        except CallFailed as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        ids = [str(uuid.uuid4()) for _ in range(8)]
        outcomes = sorted(pool.map(create, ["raced"] * 8, ids))
        assert outcomes == ["MODEL_EXISTS"] * 7 + ["models/raced"]
        assert set(pool.map(create, ["repeated"] * 8, ids[:1] * 8)) == {"models/repeated"}


def test_bad_requests_are_refused(client: Client) -> None:
    """Each wrong field has its error, and no model is made."""
    before = [model.name for model in client.models()]
    for call, reason in (
        (lambda: client.create_model("Bad Name"), "MODEL_NAME_INVALID"),
        (lambda: client.create_model("a/b"), "RESOURCE_NAME_INVALID"),
        (lambda: client.create_model("x", backbone="0" * 64), "BACKBONE_NOT_FOUND"),
        (lambda: client.create_model("x", like="nothing"), "NOT_FOUND"),
        (lambda: client.create_model("x", head="forest"), "INVALID_INPUT"),
        (lambda: client.create_model("x", request_id="1"), "INVALID_INPUT"),
        (lambda: client.copy_model("nothing", "x"), "NOT_FOUND"),
        (lambda: client.copy_model("nothing", ".."), "MODEL_NAME_INVALID"),
        (lambda: client.delete_model("nothing"), "NOT_FOUND"),
    ):
        assert failure(call).reason == reason
    assert [model.name for model in client.models()] == before


def test_models_are_counted_against_the_limit(tmp_path: Path) -> None:
    """The model beyond --max-models is RESOURCE_EXHAUSTED."""
    made = with_backbone(tmp_path / "repository")
    limits = {"max_models": 2}
    with (
        servers.running(made.root, worker=False, limits=limits) as started,
        Client(started.address) as client,
    ):
        client.create_model("a")
        client.create_model("b")
        error = failure(lambda: client.create_model("c"))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_MODELS")
        assert client.model("a").limits.max_models == 2


def test_server_that_requires_signatures_signs_new_models(tmp_path: Path) -> None:
    """Draft, first revision and copy are signed with the server's key."""
    made, key = with_backbone(tmp_path / "repository"), new_key(tmp_path)
    running = servers.running(
        made.root, trusted_keys=str(public(key)), require_signed=True, signing_key=str(key)
    )
    with running as started, Client(started.address) as client:
        client.create_model("m")
        for label in LABELS[:2]:
            add(client, "m", label)
        client.copy_model("m", "copy")
        assert client.classify("copy", [picture("amber", 40)]).revision == 1
        path = made.root / "models" / "copy" / "1" / "manifest.sig"
        assert path.exists()


def test_commands_tell_the_whole_story(topwork: Command, server: Running) -> None:
    """create, add-class, describe, copy, delete, undelete, backbones print what happened."""

    def run(*arguments: object) -> str:
        status, output, errors = topwork(*arguments, address=server.address)
        assert status == 0, errors
        return output

    assert json.loads(run("backbones", "--json"))["name"] == "tiny"
    assert "tiny" in run("backbones")
    assert "serves after 2 more" in run("create", "by-command", "--head", "ridge")
    with TemporaryDirectory() as directory:
        for label, expected in (("amber", "serves after 1 more label"), ("blue", "first revision")):
            folder = Path(directory) / label
            folder.mkdir()
            for name, content in PHOTOS[label]:
                (folder / name).write_bytes(content)
            output = run("add-class", "--model", "by-command", "--label", label, folder)
            assert expected in output
            if label == "amber":
                assert "1 more labels are needed" in run("describe", "by-command")
                assert json.loads(run("describe", "by-command", "--json"))["draft"]["images"] == 12
                assert "by-command" in run("models")
    copied = json.loads(run("copy", "by-command", "by-command-2", "--json"))
    assert (copied["serving"], copied["labels"]) == (1, ["amber", "blue"])
    assert "is deleted" in run("delete", "by-command-2")
    assert "revision 1 serves" in run("undelete", "by-command-2")
    status, _, errors = topwork(
        "create", "x", "--backbone", "a", "--like", "b", address=server.address
    )
    assert (status, "not both" in errors) == (1, True)
