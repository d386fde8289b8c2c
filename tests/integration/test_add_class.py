"""AddClass on a running server: results, wrong uploads, retries and concurrency."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.rpc import code_pb2, error_details_pb2
from support import servers, tiny
from support.bad_images import without_palette
from support.pictures import picture, pictures
from support.servers import AddClass, Running, failure, fields

from topwork import CallFailed, Client, result
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.changes import uploads
from topwork.changes.requests import UploadItem
from topwork.changes.uploads import Uploads
from topwork.errors import DeadlinePassed
from topwork.limits import DEFAULT_LIMITS
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

LABELS = ["amber", "blue", "crimson", "green"]


def named(label: str = "violet", count: int = 12, *, start: int = 0) -> list[tuple[str, bytes]]:
    """Return pictures with their file names."""
    contents = pictures(label, count, start=start)
    return [(f"{label}-{start + index}.png", content) for index, content in enumerate(contents)]


VIOLETS = named()


def images(pairs: list[tuple[str, bytes]]) -> list[change_pb.TrainingImage]:
    """Return pairs as messages TrainingImage."""
    return [change_pb.TrainingImage(display_name=name, content=content) for name, content in pairs]


def config(model: str, label: str = "violet", request_id: str = "") -> change_pb.AddClassConfig:
    """Return the config that starts an upload."""
    return change_pb.AddClassConfig(model=f"models/{model}", label=label, request_id=request_id)


def test_add_class_serves_a_new_revision(client: Client, add_class: AddClass, model: str) -> None:
    """The new revision serves, recognises all labels, and the result compares it to its parent."""
    before = client.model(model).serving_revision
    response = result(add_class(model, "violet", VIOLETS))
    revision, comparison = response.revision, response.comparison
    assert list(revision.labels) == [*LABELS, "violet"]
    assert (revision.revision, revision.parent_revision) == (2, 1)
    assert (response.images_used, revision.metrics.images) == (12, 92)
    assert not response.skipped_images
    # All labels have as many images: the mean of their recalls is the accuracy.
    assert comparison.accuracy_before == pytest.approx(before.metrics.accuracy)
    assert comparison.accuracy_after > 0.9
    assert (comparison.taught.label, comparison.taught.images) == ("violet", 12)
    assert comparison.taught.recall > 0.9
    assert revision.comparison == comparison
    assert (revision.change, list(revision.rejection)) == ("add_class", [])
    assert next(m for m in revision.metrics.per_label if m.label == "violet").images == 12
    times = response.stage_times
    for stage in (times.queued, times.embedding, times.solving, times.publishing):
        assert 0 < stage.ToNanoseconds() < 60e9
    assert client.model(model).serving_revision == revision
    shown = [*LABELS, "violet"]
    answer = client.classify(model, [picture(label, 60) for label in shown])
    assert answer.revision == 2
    assert [image.predictions[0].label for image in answer.results] == shown


def test_classify_with_the_old_revision_gives_its_old_answers(
    client: Client, add_class: AddClass, model: str
) -> None:
    """A request for a revision that no longer serves gets the same answers as before."""
    photos = pictures("crimson", 3, start=60)
    before = client.classify(model, photos)
    add_class(model, "violet", VIOLETS)
    again = client.classify(model, photos, revision=1)
    assert client.classify(model, photos).revision == 2
    assert again.revision == 1
    assert again.results == before.results


def test_head_does_not_depend_on_messages_or_order_of_an_upload(
    client: Client,
    models: model_grpc.ModelServiceStub,
    server: Running,
    serve: Callable[[Exemplars], str],
    four_colours: Exemplars,
) -> None:
    """One message, one image a message in reverse order, or one joint fit: the same head."""
    ways: list[Callable[[str], Iterator[change_pb.AddClassRequest]]] = [
        lambda model: iter(
            [change_pb.AddClassRequest(config=config(model), images=images(VIOLETS))]
        ),
        lambda model: iter(
            [
                change_pb.AddClassRequest(config=config(model)),
                *(change_pb.AddClassRequest(images=images([image])) for image in VIOLETS[::-1]),
            ]
        ),
    ]
    repository = Repository(server.repository)
    heads = set()
    for upload in ways:
        model = serve(four_colours)
        *_, finished = client.watch(models.AddClass(upload(model)).name)
        assert result(finished).images_used == 12
        heads.add(repository.manifest(model, 2).head)
    old = {label: pictures(label, 20) for label in LABELS}
    joint = tiny.embed_pictures(old | {"violet": PICTURES})
    heads.add(repository.manifest(serve(joint), 1).head)
    assert len(heads) == 1


PICTURES = [content for _, content in VIOLETS]


def test_add_class_skips_bad_images_and_names_them(add_class: AddClass, model: str) -> None:
    """Unreadable, too large and repeated images are left out, each with its name and reason."""
    bad = [
        ("notes.txt", b"not a photo"),
        ("cut.png", VIOLETS[0][1][:300]),
        ("no-palette.png", without_palette()),
        ("huge.png", bytes(2**20 + 1)),
        ("twice.png", VIOLETS[3][1]),
        ("", b""),
    ]
    response = result(add_class(model, "violet", VIOLETS[:6] + bad + VIOLETS[6:]))
    skipped = {image.display_name: image.error for image in response.skipped_images}
    assert response.images_used == 12
    assert {name: reason(error) for name, error in skipped.items()} == {
        "notes.txt": "IMAGE_UNREADABLE",
        "cut.png": "IMAGE_UNREADABLE",
        "no-palette.png": "IMAGE_UNREADABLE",
        "huge.png": "IMAGE_TOO_LARGE",
        "twice.png": "DUPLICATE",
        "images[11]": "IMAGE_UNREADABLE",
    }
    assert VIOLETS[3][0] in skipped["twice.png"].message
    assert skipped["twice.png"].code == code_pb2.ALREADY_EXISTS
    assert "1048577 bytes; the limit is 1048576" in skipped["huge.png"].message


def reason(status: object) -> str:
    """Return the reason in a status's ErrorInfo."""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)  # type: ignore[attr-defined]  # google.rpc has no types
    return str(info.reason)


@pytest.mark.parametrize(
    ("upload", "usable", "bad_name"),
    [
        ([(f"note-{n}.txt", b"not a photo %d" % n) for n in range(7)], 0, "note-0.txt"),
        ([(f"huge-{n}.png", bytes(2**20 + 1)) for n in range(2)], 0, "huge-1.png"),
        (VIOLETS[:4], 4, ""),
        ([VIOLETS[0]] * 9, 1, VIOLETS[0][0]),
        ([*VIOLETS[:4], ("note.txt", b"not a photo")], 4, "note.txt"),
    ],
)
def test_add_class_fails_with_too_few_usable_images(
    client: Client,
    add_class: AddClass,
    model: str,
    upload: list[tuple[str, bytes]],
    usable: int,
    bad_name: str,
) -> None:
    """The operation fails with the numbers and the first bad names; serving is not affected."""
    finished = add_class(model, "violet", upload)
    error = finished.error
    assert finished.done
    assert code_pb2.Code.Name(error.code) == "FAILED_PRECONDITION"
    assert reason(error) == "TOO_FEW_IMAGES"
    assert f"label 'violet' has {usable} usable images; at least 5 are needed" in error.message
    assert bad_name in error.message
    assert list(client.model(model).revisions) == [1]
    assert client.classify(model, [picture("blue", 60)]).revision == 1


def test_a_failed_label_can_be_added_again(add_class: AddClass, model: str) -> None:
    """After a failed operation the same label can be added with better images."""
    assert add_class(model, "violet", VIOLETS[:2]).HasField("error")
    assert result(add_class(model, "violet", VIOLETS)).revision.revision == 2


def test_add_class_ignores_damaged_old_revisions(
    server: Running, add_class: AddClass, model: str
) -> None:
    """A class can be added although an unneeded old revision cannot be read."""
    add_class(model, "violet", VIOLETS)
    add_class(model, "white", named("white"))
    manifest = server.repository / "models" / model / "1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert result(add_class(model, "zircon", named("zircon"))).revision.revision == 4


@pytest.mark.parametrize("label", ["blue", "crimson"])
def test_add_class_of_an_existing_label_is_refused(client: Client, label: str) -> None:
    """Adding a label that the model has is ALREADY_EXISTS with the label's name."""
    error = failure(lambda: client.add_class("colours", label, VIOLETS))
    info = error_details_pb2.ResourceInfo()
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "LABEL_EXISTS")
    assert error.status.details[1].Unpack(info)
    assert info.resource_name == label
    assert list(client.model("colours").revisions) == [1]


def test_labels_are_compared_composed(client: Client, serve: Callable[[Exemplars], str]) -> None:
    """A label in decomposed Unicode form equals the composed one."""
    model = serve(
        tiny.embed_pictures({"caf\u00e9": pictures("blue", 5), "x": pictures("amber", 5)})
    )
    assert failure(lambda: client.add_class(model, "cafe\u0301", VIOLETS)).code == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", "the label is empty"),
        ("v" * 500, "500 characters; the limit is 100"),
        ("vio\nlet", "control character"),
        ("vio\x00let", "control character"),
        ("vio\u202elet", "control character"),
        (" violet", "white space at an end"),
    ],
)
def test_add_class_refuses_an_invalid_label(client: Client, label: str, message: str) -> None:
    """An invalid label is INVALID_ARGUMENT that names field and rule."""
    error = failure(lambda: client.add_class("colours", label, VIOLETS))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", ["config.label"])
    assert message in str(error)


@pytest.mark.parametrize("label", ["v" * 100, "Löwenzahn 🌼", "a/b", "..", "[/]", "5"])
def test_add_class_accepts_unusual_labels(
    client: Client, add_class: AddClass, model: str, label: str
) -> None:
    """A label may look like a path, a number or markup."""
    assert label in result(add_class(model, label, VIOLETS[:6])).revision.labels
    answer = client.classify(model, [picture("violet", 60)])
    assert answer.results[0].predictions[0].label == label


def upload_of(case: str) -> list[change_pb.AddClassRequest]:
    """Return the messages of an invalid upload."""
    first = change_pb.AddClassRequest(config=config("colours"), images=images(VIOLETS))
    only_images = change_pb.AddClassRequest(images=images(VIOLETS))
    return {
        "nothing": [],
        "no config": [only_images],
        "config later": [only_images, change_pb.AddClassRequest(config=config("colours"))],
        "config twice": [first, first],
        "no images": [change_pb.AddClassRequest(config=config("colours"))],
        "no images in two": [
            change_pb.AddClassRequest(config=config("colours")),
            change_pb.AddClassRequest(),
        ],
        "no UUID": [change_pb.AddClassRequest(config=config("colours", request_id="7"))],
        "no model": [change_pb.AddClassRequest(config=change_pb.AddClassConfig(label="violet"))],
        "one too many": [first, change_pb.AddClassRequest(images=images(VIOLETS[:1] * 389))],
    }[case]


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ("nothing", "config"),
        ("no config", "config"),
        ("config later", "config"),
        ("config twice", "config"),
        ("no images", "images"),
        ("no images in two", "images"),
        ("no UUID", "config.request_id"),
        ("no model", "config.model"),
        ("one too many", "images"),
    ],
)
def test_add_class_names_the_field_of_an_invalid_upload(
    models: model_grpc.ModelServiceStub, case: str, field: str
) -> None:
    """Each invalid upload is INVALID_ARGUMENT and names the field."""
    error = failure(lambda: models.AddClass(iter(upload_of(case))))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", [field])


def test_an_invalid_upload_leaves_no_operation(
    client: Client, models: model_grpc.ModelServiceStub, model: str
) -> None:
    """An upload that fails after its images is not accepted: no operation has its id."""
    request_id = str(uuid.uuid4())
    first = change_pb.AddClassRequest(
        config=config(model, request_id=request_id), images=images(VIOLETS)
    )
    assert failure(lambda: models.AddClass(iter([first, first]))).code == "INVALID_ARGUMENT"
    missing = failure(lambda: list(client.watch(f"operations/{request_id}")))
    assert missing.code == "NOT_FOUND"


def test_add_class_to_an_unknown_model_is_not_found(client: Client) -> None:
    """Adding a class to an unknown model is NOT_FOUND."""
    assert failure(lambda: client.add_class("unknown", "violet", VIOLETS)).code == "NOT_FOUND"


def test_add_class_enforces_the_limit_of_labels(
    client: Client, serve: Callable[[Exemplars], str]
) -> None:
    """A model at its limit of labels refuses another; the error has number and limit."""
    model = serve(tiny.embed_pictures({f"{n}": pictures("blue", 5, start=5 * n) for n in range(7)}))
    error = failure(lambda: client.add_class(model, "violet", VIOLETS))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_MANY_LABELS")
    assert "7 labels; the limit is 7" in str(error)


def test_concurrent_uploads_do_not_exceed_the_limit_of_labels(
    client: Client, serve: Callable[[Exemplars], str]
) -> None:
    """If two concurrent uploads reach the limit of labels, one succeeds and one fails."""
    model = serve(tiny.embed_pictures({f"{n}": pictures("blue", 5, start=5 * n) for n in range(6)}))

    def add(label: str) -> int:
        try:
            accepted = client.add_class(model, label, VIOLETS)
        except CallFailed as error:
            return int(error.status.code)
        *_, finished = client.watch(accepted.name)
        return int(finished.raw.error.code)

    with ThreadPoolExecutor(2) as pool:
        codes = sorted(pool.map(add, ["violet", "indigo"]))
    assert codes == [code_pb2.OK, code_pb2.FAILED_PRECONDITION]
    assert len(client.model(model).serving_revision.labels) == 7


def test_a_silent_upload_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that receives no message ends with DeadlinePassed."""
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.05)
    receiving = Uploads(Repository(tmp_path), DEFAULT_LIMITS)

    async def silent() -> AsyncIterator[UploadItem]:
        await asyncio.Event().wait()
        yield ()

    with pytest.raises(DeadlinePassed, match="the upload sent nothing for"):
        asyncio.run(receiving.request(silent()))


def test_calls_with_one_request_id_are_one_operation(client: Client, model: str) -> None:
    """Concurrent and later calls with one request id are one operation and one revision."""
    request_id = str(uuid.uuid4())

    def call(_: int) -> str:
        return str(client.add_class(model, "violet", VIOLETS, request_id=request_id).name)

    with ThreadPoolExecutor(4) as pool:
        names = set(pool.map(call, range(4)))
    *_, finished = client.watch(f"operations/{request_id}")
    later = client.add_class(model, "violet", VIOLETS[:1], request_id=request_id.upper())
    assert names == {f"operations/{request_id}"}
    assert later == finished
    assert result(finished).revision.revision == 2
    assert list(client.model(model).revisions) == [1, 2]


def test_a_reused_request_id_is_refused(client: Client, add_class: AddClass, model: str) -> None:
    """A request id that was used for another label is ALREADY_EXISTS and names that label."""
    request_id = str(uuid.uuid4())
    add_class(model, "violet", VIOLETS, request_id=request_id)
    error = failure(lambda: client.add_class(model, "indigo", VIOLETS, request_id=request_id))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert "'violet'" in str(error)


def test_two_concurrent_classes_are_both_added(client: Client, model: str) -> None:
    """Concurrent uploads for one model run in turn: the last revision has both labels."""
    classes = {"violet": VIOLETS, "white": named("white", 8)}
    with ThreadPoolExecutor(2) as pool:
        accepted = list(pool.map(lambda item: client.add_class(model, *item), classes.items()))
    revisions = []
    for operation in accepted:
        *_, finished = client.watch(operation.name)
        revisions.append(result(finished).revision)
    first, second = sorted(revisions, key=lambda made: made.revision)
    assert (first.revision, first.parent_revision) == (2, 1)
    assert (second.revision, second.parent_revision) == (3, 2)
    assert len(first.labels) == 5
    assert list(second.labels) == sorted([*LABELS, *classes])
    assert client.model(model).serving_revision == second


def test_uploads_run_in_accepted_order(client: Client, serve: Callable[[Exemplars], str]) -> None:
    """Uploads for one model run in the order in which they were accepted."""
    model = serve(tiny.embed_pictures({"a": pictures("amber", 5), "b": pictures("blue", 5)}))
    anything = change_pb.ChangeOptions(
        gate=change_pb.Gate(max_old_class_drop=1, min_new_class_recall=0)
    )
    accepted = [
        client.add_class(
            model,
            f"label-{number}",
            VIOLETS[:6],
            request_id=str(uuid.UUID(int=2**64 - number)),
            options=anything,
        )
        for number in range(5)
    ]
    finished = [list(client.watch(operation.name))[-1] for operation in accepted]
    assert [result(operation).revision.revision for operation in finished] == [2, 3, 4, 5, 6]


def test_concurrent_uploads_of_one_label_add_it_once(client: Client, model: str) -> None:
    """If one label is uploaded twice, one operation succeeds, the other is ALREADY_EXISTS."""
    accepted = [client.add_class(model, "violet", VIOLETS[:half]) for half in (6, 12)]
    finished = [list(client.watch(operation.name))[-1] for operation in accepted]
    codes = sorted(operation.raw.error.code for operation in finished)
    assert codes == [code_pb2.OK, code_pb2.ALREADY_EXISTS]
    assert list(client.model(model).revisions) == [1, 2]


def test_classify_works_during_add_class(server: Running, client: Client, model: str) -> None:
    """While classes are added no request fails; each answer has the labels of its revision."""
    labels: dict[int, list[str]] = {1: LABELS}
    answers: list[tuple[int, list[str], str]] = []
    photo = picture("green", 60)
    stop = threading.Event()

    def ask() -> None:
        with Client(server.address) as own:
            while not stop.is_set():
                answer = own.classify(model, [photo], top_k=10)
                predictions = answer.results[0].predictions
                known = sorted(prediction.label for prediction in predictions)
                answers.append((answer.revision, known, predictions[0].label))

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        try:
            for label, upload in (("violet", VIOLETS), ("white", named("white", 8))):
                *_, finished = client.watch(client.add_class(model, label, upload).name)
                revision = result(finished).revision
                labels[revision.revision] = list(revision.labels)
                # More than were in flight when the revision began to serve.
                enough = len(answers) + 8
                servers.eventually(
                    lambda enough=enough: len(answers) > enough or any(c.done() for c in callers)  # type: ignore[misc]  # mypy cannot infer a lambda's default
                )
        finally:
            stop.set()
    for caller in callers:
        caller.result()  # raises the caller's error
    assert {revision for revision, _, _ in answers} == {1, 2, 3}
    assert all(known == labels[revision] for revision, known, _ in answers)
    assert {best for _, _, best in answers} == {"green"}
