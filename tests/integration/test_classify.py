"""Classify, GetModel and ListModels over the wire."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from PIL import Image
from support import servers
from support.bad_images import KINDS, turned, without_palette
from support.pictures import encode, picture
from support.servers import Command, Running, failure, fields

import topwork as package
from topwork import Client, ImageResult
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.store import Repository
from topwork.cli.predict import predict
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc

LABELS = ["amber", "blue", "crimson", "green"]
PHOTO = picture("blue", 40)


def best(result: ImageResult) -> str:
    """Return the most probable label of a classified image."""
    assert result.error is None
    return result.predictions[0].label


def test_classify_answers_in_request_order(client: Client) -> None:
    """Results come in request order, with calibrated probabilities, from one revision."""
    shown = ["green", "amber", "crimson", "blue", "amber", "green"]
    answer = client.classify("colours", [picture(label, 41 + n) for n, label in enumerate(shown)])
    assert [best(result) for result in answer.results] == shown
    assert answer.revision == 1
    for result in answer.results:
        labels, probabilities = zip(*result.predictions, strict=True)
        assert sorted(labels) == LABELS
        assert list(probabilities) == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    timings = answer.raw.timings
    assert timings.total.ToNanoseconds() > 0
    assert timings.decode.ToNanoseconds() > 0
    assert timings.backbone.ToNanoseconds() > 0


def test_top_k_limits_predictions(client: Client) -> None:
    """top_k limits the predictions of each image."""
    answer = client.classify("colours", [PHOTO, PHOTO], top_k=1)
    assert [len(result.predictions) for result in answer.results] == [1, 1]


def test_every_format_is_classified_alike(client: Client) -> None:
    """HEIC, AVIF and all other formats give the label of the same PNG, at any EXIF orientation."""
    image = Image.open(io.BytesIO(PHOTO))
    files = [turned(image, 6, kind) if kind in {"HEIF", "AVIF"} else encode(image, kind)
             for kind in KINDS]  # fmt: skip
    answer = client.classify("colours", files)
    assert [best(result) for result in answer.results] == ["blue"] * len(KINDS)


def test_classify_reports_errors_of_bad_images_in_their_places(client: Client) -> None:
    """Unreadable and oversized images are errors in their places, with details."""
    bad = [b"nonsense", bytes(2**20 + 1), without_palette()]
    answer = client.classify("colours", [PHOTO, *bad, PHOTO])
    assert [best(answer.results[place]) for place in (0, 4)] == ["blue", "blue"]
    reasons = ["IMAGE_UNREADABLE", "IMAGE_TOO_LARGE", "IMAGE_UNREADABLE"]
    for place, reason in zip((1, 2, 3), reasons, strict=True):
        error = answer.results[place].raw.error
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert error.code == code_pb2.INVALID_ARGUMENT
        assert error.details[0].Unpack(info)
        assert error.details[1].Unpack(bad)
        assert info.reason == reason
        assert [violation.field for violation in bad.field_violations] == [f"images[{place}]"]


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        ({"model": "models/unknown", "images": [PHOTO]}, "NOT_FOUND", None),
        ({"model": "models/colours", "images": [PHOTO], "revision": 9}, "NOT_FOUND", None),
        ({"model": "models/..", "images": [PHOTO]}, "NOT_FOUND", None),
        ({"model": "colours", "images": [PHOTO]}, "INVALID_ARGUMENT", "model"),
        ({"model": "models/a/b", "images": [PHOTO]}, "INVALID_ARGUMENT", "model"),
        ({"images": [PHOTO]}, "INVALID_ARGUMENT", "model"),
        ({"model": "models/colours"}, "INVALID_ARGUMENT", "images"),
        ({"model": "models/colours", "images": [PHOTO] * 17}, "INVALID_ARGUMENT", "images"),
        (
            {"model": "models/colours", "images": [PHOTO], "top_k": -1},
            "INVALID_ARGUMENT",
            "top_k",
        ),
        (
            {"model": "models/colours", "images": [PHOTO], "revision": -1},
            "INVALID_ARGUMENT",
            "revision",
        ),
    ],
)
def test_classify_names_the_field_of_an_invalid_request(
    channel: grpc.Channel, request_: dict[str, object], code: str, field: str | None
) -> None:
    """Each invalid request has its code and names the invalid field."""
    stub = classify_grpc.ClassifierServiceStub(channel)
    error = failure(lambda: stub.Classify(classify_pb.ClassifyRequest(**request_)))  # type: ignore[arg-type]  # fields by name
    assert error.code == code
    assert fields(error) == ([field] if field else [])


def test_classify_of_too_many_images_states_the_limit(client: Client) -> None:
    """The error of a request with too many images has the number and the limit."""
    error = failure(lambda: client.classify("colours", [PHOTO] * 17))
    assert error.reason == "TOO_MANY_IMAGES"
    assert "17 images; the limit is 16" in str(error)


def test_a_message_beyond_the_limit_is_refused(client: Client, channel: grpc.Channel) -> None:
    """A message over the published limit is RESOURCE_EXHAUSTED with both sizes."""
    limit = client.model("colours").limits.max_message_bytes
    stub = classify_grpc.ClassifierServiceStub(channel)
    request = classify_pb.ClassifyRequest(model="models/colours", images=[bytes(limit)])
    error = failure(lambda: stub.Classify(request))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert f"({request.ByteSize()} vs. {limit})" in str(error)
    assert best(client.classify("colours", [PHOTO]).results[0]) == "blue"


def test_a_large_message_within_the_limit_is_accepted(client: Client) -> None:
    """The published limit applies, not gRPC's default of 4 MB."""
    limit = client.model("colours").limits.max_message_bytes
    large = PHOTO + bytes(limit // 4 - len(PHOTO) - 100)
    answer = client.classify("colours", [large] * 4)
    assert [best(result) for result in answer.results] == ["blue"] * 4


def test_an_exceeded_deadline_ends_the_call(client: Client, server: Running) -> None:
    """A call past its deadline is DEADLINE_EXCEEDED in the client and in the server."""
    large = encode(Image.new("RGB", (4000, 4000)))  # sixteen of them take far longer to decode
    before = late_calls(server)
    error = failure(lambda: client.classify("colours", [large] * 16, timeout=0.3))
    assert error.code == "DEADLINE_EXCEEDED"
    servers.eventually(lambda: late_calls(server) > before)


def late_calls(server: Running) -> int:
    """Return how many Classify calls the server ended with DEADLINE_EXCEEDED."""
    return sum(
        entry["event"] == "call"
        and entry["method"].endswith("/Classify")
        and entry["code"] == "DEADLINE_EXCEEDED"
        for entry in server.log_entries
    )


def test_get_model_describes_the_model(client: Client, server: Running) -> None:
    """GetModel returns labels, backbone, metrics and revisions of the repository, and limits."""
    manifest = Repository(server.repository).manifest("colours", 1)
    model = client.model("colours")
    revision = model.serving_revision
    assert (model.name, list(model.revisions)) == ("models/colours", [1])
    assert list(revision.labels) == LABELS
    assert revision.backbone.digest == manifest.backbone
    assert revision.metrics.images == manifest.images == 80
    assert revision.metrics.accuracy_low < revision.metrics.accuracy
    assert revision.metrics.accuracy <= revision.metrics.accuracy_high + 1e-12
    assert sum(revision.metrics.confusion) == 80
    assert model.limits.max_images_per_request == 16


@pytest.mark.parametrize(
    ("name", "code"), [("models/unknown", "NOT_FOUND"), ("unknown", "INVALID_ARGUMENT")]
)
def test_get_model_of_an_unknown_model_is_not_found(
    models: model_grpc.ModelServiceStub, name: str, code: str
) -> None:
    """An unknown model is NOT_FOUND, a malformed name INVALID_ARGUMENT."""
    assert failure(lambda: models.GetModel(model_pb.GetModelRequest(name=name))).code == code


def test_a_very_long_name_is_not_found(client: Client) -> None:
    """A very long unknown name is NOT_FOUND or INVALID_ARGUMENT."""
    assert failure(lambda: client.model("x" * 20_000)).code in {"NOT_FOUND", "INVALID_ARGUMENT"}


def test_list_models_pages_hold_every_model_once(
    client: Client,
    models: model_grpc.ModelServiceStub,
    serve: Callable[[Exemplars], str],
    four_colours: Exemplars,
) -> None:
    """Pages of any size together have all models, sorted by name."""
    made = {f"models/{serve(four_colours)}" for _ in range(2)}
    whole = [model.name for model in client.models()]
    assert whole == sorted(whole)
    assert {"models/colours", *made} <= set(whole)
    for size in (1, 2, len(whole), 5000):
        paged: list[str] = []
        token = ""
        while True:
            page = models.ListModels(model_pb.ListModelsRequest(page_size=size, page_token=token))
            paged += [model.name for model in page.models]
            assert len(page.models) <= size
            if not (token := page.next_page_token):
                break
        assert paged == whole


@pytest.mark.parametrize(
    ("page", "field"),
    [
        ({"page_token": "next"}, "page_token"),
        ({"page_token": "-1"}, "page_token"),
        ({"page_token": "9" * 40}, "page_token"),
        ({"page_size": -1}, "page_size"),
    ],
)
def test_list_models_refuses_an_invalid_page(
    models: model_grpc.ModelServiceStub, page: dict[str, object], field: str
) -> None:
    """An invented page token or a negative size is INVALID_ARGUMENT."""
    error = failure(lambda: models.ListModels(model_pb.ListModelsRequest(**page)))  # type: ignore[arg-type]  # fields by name
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", [field])


def test_model_in_this_process_answers_as_the_server(server: Running, client: Client) -> None:
    """``topwork.open`` gives the same numbers, and so does ``Client.predict`` for any iterable."""
    photos = [picture(label, 50 + number) for label in LABELS for number in range(3)]
    expected = list(client.classify("colours", photos).results)
    assert package.open(server.repository, "colours").predict(photos) == expected
    assert client.predict("colours", iter(photos)) == expected
    assert list(client.classify("colours", photos[:1]).results) == expected[:1]


def test_predict_prints_what_classify_prints(
    server: Running, topwork: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same rows, unreadable files in their places, and the same exit status."""
    for name, photo in {"a.png": PHOTO, "b.png": b"bad", "c.png": PHOTO}.items():
        (tmp_path / name).write_bytes(photo)
    classified = topwork("classify", "--model", "colours", "--json", tmp_path)
    arguments = ["colours", "--repository", str(server.repository), "--json", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        predict(arguments, standalone_mode=False)
    assert (ended.value.code, capsys.readouterr().out) == classified[:2]
    assert classified[0] == 1
    assert classified[1].count("\n") == 3


def test_evaluate_gives_the_same_numbers_with_a_server_and_a_repository(
    server: Running, topwork: Command, tmp_path: Path
) -> None:
    """An unreadable photo, a manifest's column and strangers included."""
    rows = ["path,label,camera"]
    for label in (*LABELS, "zircon"):
        for number in range(70, 76):
            (tmp_path / f"{label}{number}.png").write_bytes(picture(label, number))
            rows.append(f"{label}{number}.png,{label},{'ab'[number % 2]}")
    (tmp_path / "bad.png").write_bytes(b"bad")
    (tmp_path / "photos.csv").write_text("\n".join([*rows, f"bad.png,{LABELS[0]},a"]))
    arguments = ("evaluate", "--json", "colours", tmp_path / "photos.csv", "--compare", 1)
    status, out, err = topwork(*arguments)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["images"], found["unknown"]["detected"]["images"]) == (6 * len(LABELS), 6)
    assert [row["value"] for row in found["subgroups"]] == ["a", "b"]
    assert [each["image"] for each in found["skipped"]] == ["bad.png"]
    assert json.loads(topwork(*arguments, "--repository", server.repository)[1]) == found


def test_evaluate_of_an_unknown_revision_is_not_found(topwork: Command, tmp_path: Path) -> None:
    """The error names the revisions that exist."""
    (tmp_path / LABELS[0]).mkdir()
    (tmp_path / LABELS[0] / "a.png").write_bytes(PHOTO)
    status, _, err = topwork("evaluate", "colours", tmp_path, "--revision", 99)
    assert status == 1
    assert "revisions/99" in err
