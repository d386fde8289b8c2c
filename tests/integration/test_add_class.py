"""A live model learns a class that it has never seen."""

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
from support.servers import Running, Teach, failure, fields

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
    """Return pairs as the contract's images."""
    return [change_pb.TrainingImage(display_name=name, content=content) for name, content in pairs]


def config(model: str, label: str = "violet", request_id: str = "") -> change_pb.AddClassConfig:
    """Return what an upload begins with."""
    return change_pb.AddClassConfig(model=f"models/{model}", label=label, request_id=request_id)


def test_a_new_class_is_learnt(client: Client, teach: Teach, model: str) -> None:
    """The new revision serves, knows old and new, and the result says how it compares."""
    before = client.model(model).serving_revision
    response = result(teach(model, "violet", VIOLETS))
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
    assert next(one for one in revision.metrics.per_label if one.label == "violet").images == 12
    times = response.stage_times
    for stage in (times.queued, times.embedding, times.solving, times.publishing):
        assert 0 < stage.ToNanoseconds() < 60e9
    assert client.model(model).serving_revision == revision
    shown = [*LABELS, "violet"]
    answer = client.classify(model, [picture(label, 60) for label in shown])
    assert answer.revision == 2
    assert [one.predictions[0].label for one in answer.results] == shown


def test_the_old_revision_answers_when_asked_for(client: Client, teach: Teach, model: str) -> None:
    """A revision that serves no more gives the answers that it gave before."""
    photos = pictures("crimson", 3, start=60)
    before = client.classify(model, photos)
    teach(model, "violet", VIOLETS)
    again = client.classify(model, photos, revision=1)
    assert client.classify(model, photos).revision == 2
    assert again.revision == 1
    assert again.results == before.results


def test_how_an_upload_is_cut_and_ordered_does_not_matter(
    client: Client,
    models: model_grpc.ModelServiceStub,
    server: Running,
    serve: Callable[[Exemplars], str],
    four_colours: Exemplars,
) -> None:
    """In one message, one image a message, backwards, or fitted from the start: the same head."""
    ways: list[Callable[[str], Iterator[change_pb.AddClassRequest]]] = [
        lambda model: iter(
            [change_pb.AddClassRequest(config=config(model), images=images(VIOLETS))]
        ),
        lambda model: iter(
            [
                change_pb.AddClassRequest(config=config(model)),
                *(change_pb.AddClassRequest(images=images([one])) for one in VIOLETS[::-1]),
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
    joint = tiny.embed_pictures({one: pictures(one, 20) for one in LABELS} | {"violet": PICTURES})
    heads.add(repository.manifest(serve(joint), 1).head)
    assert len(heads) == 1


PICTURES = [content for _, content in VIOLETS]


def test_bad_images_are_named_and_the_rest_is_used(teach: Teach, model: str) -> None:
    """Unreadable, too large and repeated images are left out, each with its name and reason."""
    bad = [
        ("notes.txt", b"not a photo"),
        ("cut.png", VIOLETS[0][1][:300]),
        ("no-palette.png", without_palette()),
        ("huge.png", bytes(2**20 + 1)),
        ("twice.png", VIOLETS[3][1]),
        ("", b""),
    ]
    response = result(teach(model, "violet", VIOLETS[:6] + bad + VIOLETS[6:]))
    skipped = {one.display_name: one.error for one in response.skipped_images}
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
    ("upload", "usable", "named_one"),
    [
        ([(f"note-{n}.txt", b"not a photo %d" % n) for n in range(7)], 0, "note-0.txt"),
        ([(f"huge-{n}.png", bytes(2**20 + 1)) for n in range(2)], 0, "huge-1.png"),
        (VIOLETS[:4], 4, ""),
        ([VIOLETS[0]] * 9, 1, VIOLETS[0][0]),
        ([*VIOLETS[:4], ("note.txt", b"not a photo")], 4, "note.txt"),
    ],
)
def test_too_few_usable_images(
    client: Client,
    teach: Teach,
    model: str,
    upload: list[tuple[str, bytes]],
    usable: int,
    named_one: str,
) -> None:
    """The operation fails with the numbers and the first bad names; what serves goes on serving."""
    finished = teach(model, "violet", upload)
    error = finished.error
    assert finished.done
    assert code_pb2.Code.Name(error.code) == "FAILED_PRECONDITION"
    assert reason(error) == "TOO_FEW_IMAGES"
    assert f"label 'violet' has {usable} usable images; at least 5 are needed" in error.message
    assert named_one in error.message
    assert list(client.model(model).revisions) == [1]
    assert client.classify(model, [picture("blue", 60)]).revision == 1


def test_a_failed_label_can_be_tried_again(teach: Teach, model: str) -> None:
    """After an operation failed, the same label with better images is learnt."""
    assert teach(model, "violet", VIOLETS[:2]).HasField("error")
    assert result(teach(model, "violet", VIOLETS)).revision.revision == 2


def test_a_damaged_old_revision_does_not_keep_a_model_from_learning(
    server: Running, teach: Teach, model: str
) -> None:
    """A class is added also when a revision that nobody needs any more cannot be read."""
    teach(model, "violet", VIOLETS)
    teach(model, "white", named("white"))
    manifest = server.repository / "models" / model / "1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert result(teach(model, "zircon", named("zircon"))).revision.revision == 4


@pytest.mark.parametrize("label", ["blue", "crimson"])
def test_a_label_that_exists(client: Client, label: str) -> None:
    """Adding a label that the model has is ALREADY_EXISTS, and names it."""
    error = failure(lambda: client.add_class("colours", label, VIOLETS))
    info = error_details_pb2.ResourceInfo()
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "LABEL_EXISTS")
    assert error.status.details[1].Unpack(info)
    assert info.resource_name == label
    assert list(client.model("colours").revisions) == [1]


def test_a_label_that_looks_the_same_is_the_same(
    client: Client, serve: Callable[[Exemplars], str]
) -> None:
    """Labels are compared in their composed form, however their letters were typed."""
    model = serve(
        tiny.embed_pictures({"caf\u00e9": pictures("blue", 5), "x": pictures("amber", 5)})
    )
    assert failure(lambda: client.add_class(model, "cafe\u0301", VIOLETS)).code == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "the label is empty"),
        ("v" * 500, "500 characters; the limit is 100"),
        ("vio\nlet", "control character"),
        ("vio\x00let", "control character"),
        ("vio\u202elet", "control character"),
        (" violet", "white space at an end"),
    ],
)
def test_a_label_that_is_none(client: Client, label: str, said: str) -> None:
    """A label against the rules is INVALID_ARGUMENT that names field and rule."""
    error = failure(lambda: client.add_class("colours", label, VIOLETS))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", ["config.label"])
    assert said in str(error)


@pytest.mark.parametrize("label", ["v" * 100, "Löwenzahn 🌼", "a/b", "..", "[/]", "5"])
def test_a_label_with_any_other_characters_is_learnt(
    client: Client, teach: Teach, model: str, label: str
) -> None:
    """What looks like a path, a number or markup is a label like any other."""
    assert label in result(teach(model, label, VIOLETS[:6])).revision.labels
    answer = client.classify(model, [picture("violet", 60)])
    assert answer.results[0].predictions[0].label == label


def upload_of(case: str) -> list[change_pb.AddClassRequest]:
    """Return the messages of a wrong upload."""
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
def test_a_wrong_upload_is_told_what_is_wrong(
    models: model_grpc.ModelServiceStub, case: str, field: str
) -> None:
    """Each wrong upload is INVALID_ARGUMENT, and names the field."""
    error = failure(lambda: models.AddClass(iter(upload_of(case))))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", [field])


def test_a_wrong_upload_leaves_no_operation(
    client: Client, models: model_grpc.ModelServiceStub, model: str
) -> None:
    """An upload that ends in an error after its images was never accepted: its id is free."""
    request_id = str(uuid.uuid4())
    first = change_pb.AddClassRequest(
        config=config(model, request_id=request_id), images=images(VIOLETS)
    )
    assert failure(lambda: models.AddClass(iter([first, first]))).code == "INVALID_ARGUMENT"
    gone = failure(lambda: list(client.watch(f"operations/{request_id}")))
    assert gone.code == "NOT_FOUND"


def test_a_model_that_is_not_there(client: Client) -> None:
    """Adding a class to an unknown model is NOT_FOUND."""
    assert failure(lambda: client.add_class("unknown", "violet", VIOLETS)).code == "NOT_FOUND"


def test_a_model_has_room_for_so_many_labels(
    client: Client, serve: Callable[[Exemplars], str]
) -> None:
    """A model with as many labels as there may be takes no more, and the error says how many."""
    model = serve(tiny.embed_pictures({f"{n}": pictures("blue", 5, start=5 * n) for n in range(7)}))
    error = failure(lambda: client.add_class(model, "violet", VIOLETS))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_MANY_LABELS")
    assert "7 labels; the limit is 7" in str(error)


def test_the_last_room_for_a_label_is_given_once(
    client: Client, serve: Callable[[Exemplars], str]
) -> None:
    """Of two uploads at once for a model with room for one label one is learnt, one is not."""
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


def test_a_silent_upload_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that opens an upload and sends nothing does not hold it for ever."""
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.05)
    receiving = Uploads(Repository(tmp_path), DEFAULT_LIMITS)

    async def silent() -> AsyncIterator[UploadItem]:
        await asyncio.Event().wait()
        yield ()

    with pytest.raises(DeadlinePassed, match="the upload sent nothing for"):
        asyncio.run(receiving.request(silent()))


def test_a_repeated_call_is_the_same_operation(client: Client, model: str) -> None:
    """Calls with one request id, at once and later, are one operation and one new revision."""
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


def test_a_request_id_is_for_one_label(client: Client, teach: Teach, model: str) -> None:
    """A request id that was used for another label is ALREADY_EXISTS, and says for which."""
    request_id = str(uuid.uuid4())
    teach(model, "violet", VIOLETS, request_id=request_id)
    error = failure(lambda: client.add_class(model, "indigo", VIOLETS, request_id=request_id))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert "'violet'" in str(error)


def test_two_classes_at_once_both_land(client: Client, model: str) -> None:
    """Two uploads for one model at once are done in turn: the second revision has both labels."""
    classes = {"violet": VIOLETS, "white": named("white", 8)}
    with ThreadPoolExecutor(2) as pool:
        accepted = list(pool.map(lambda one: client.add_class(model, *one), classes.items()))
    revisions = []
    for operation in accepted:
        *_, finished = client.watch(operation.name)
        revisions.append(result(finished).revision)
    first, second = sorted(revisions, key=lambda one: one.revision)
    assert (first.revision, first.parent_revision) == (2, 1)
    assert (second.revision, second.parent_revision) == (3, 2)
    assert len(first.labels) == 5
    assert list(second.labels) == sorted([*LABELS, *classes])
    assert client.model(model).serving_revision == second


def test_classes_are_learnt_in_the_order_of_their_arrival(
    client: Client, serve: Callable[[Exemplars], str]
) -> None:
    """Uploads for one model are done in the order in which they were accepted."""
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
    finished = [list(client.watch(one.name))[-1] for one in accepted]
    assert [result(one).revision.revision for one in finished] == [2, 3, 4, 5, 6]


def test_one_label_twice_at_once_lands_once(client: Client, model: str) -> None:
    """Of two uploads of one label one is learnt; the other operation ends with ALREADY_EXISTS."""
    accepted = [client.add_class(model, "violet", VIOLETS[:half]) for half in (6, 12)]
    finished = [list(client.watch(one.name))[-1] for one in accepted]
    codes = sorted(one.raw.error.code for one in finished)
    assert codes == [code_pb2.OK, code_pb2.ALREADY_EXISTS]
    assert list(client.model(model).revisions) == [1, 2]


def test_serving_never_stops(server: Running, client: Client, model: str) -> None:
    """While classes are added no request fails, and each answer has the labels of its revision."""
    labels: dict[int, list[str]] = {1: LABELS}
    answers: list[tuple[int, list[str], str]] = []
    photo = picture("green", 60)
    stop = threading.Event()

    def ask() -> None:
        with Client(server.address) as own:
            while not stop.is_set():
                answer = own.classify(model, [photo], top_k=10)
                predictions = answer.results[0].predictions
                known = sorted(one.label for one in predictions)
                answers.append((answer.revision, known, predictions[0].label))

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask) for _ in range(4)]
        try:
            for label, upload in (("violet", VIOLETS), ("white", named("white", 8))):
                *_, finished = client.watch(client.add_class(model, label, upload).name)
                revision = result(finished).revision
                labels[revision.revision] = list(revision.labels)
                asked = len(answers) + 8  # more than were under way when it began to serve
                servers.eventually(
                    lambda asked=asked: len(answers) > asked or any(c.done() for c in callers)  # type: ignore[misc]  # mypy cannot infer a lambda's default
                )
        finally:
            stop.set()
    for caller in callers:
        caller.result()  # raises what failed
    assert {revision for revision, _, _ in answers} == {1, 2, 3}
    assert all(known == labels[revision] for revision, known, _ in answers)
    assert {best for _, _, best in answers} == {"green"}
