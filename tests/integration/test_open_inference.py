"""The Open Inference Protocol over the wire: the same engine, limits and errors as Classify."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from PIL import Image
from support import infers, servers, tiny
from support.bad_images import without_palette
from support.infers import outputs, request
from support.pictures import encode, picture
from support.servers import Running, failure, fields

from topwork import Client
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.store import Repository
from topwork.inference import inference_service_pb2 as pb
from topwork.inference import inference_service_pb2_grpc as pb_grpc
from topwork.inputs.image import preprocess

LABELS = ["amber", "blue", "crimson", "green"]
SHOWN = ["green", "amber", "blue", "crimson", "green"]
PHOTO = picture("blue", 40)


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    """Return the service; untyped, as gRPC's own stubs are."""
    return pb_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """Return a JPEG of each label shown."""
    made = []
    for number, label in enumerate(SHOWN):
        with Image.open(io.BytesIO(picture(label, 60 + number))) as image:
            made.append(encode(image, "JPEG"))
    return made


@pytest.fixture(scope="module")
def classified(client: Client, files: list[bytes]) -> np.ndarray[Any, Any]:
    """Return what Classify says of them: probabilities (N, 4) in label order."""
    answer = client.classify("colours", files)
    found = np.zeros((len(files), len(LABELS)), dtype=np.float32)
    for row, result in zip(found, answer.results, strict=True):
        for one in result.predictions:
            row[LABELS.index(one.label)] = one.probability
    return found


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["files", "uint8", "float32"])
def test_it_says_what_classify_says(
    stub: Any, files: list[bytes], classified: np.ndarray[Any, Any], kind: str, raw: bool
) -> None:
    """Encoded, or preprocessed as UINT8 or FP32, raw or typed: the probabilities of Classify."""
    given: Any = files
    if kind != "files":
        given = np.stack([preprocess(one, tiny.SPEC) for one in files]).astype(kind)
    response = stub.ModelInfer(request(given, raw=raw, id="number 5"))
    assert (response.model_name, response.model_version, response.id) == (
        "colours",
        "1",
        "number 5",
    )
    found = outputs(response)
    assert list(found) == ["probabilities", "logits", "embedding"]
    np.testing.assert_allclose(found["probabilities"], classified, atol=1e-6)
    assert found["logits"].argmax(axis=1).tolist() == [LABELS.index(one) for one in SHOWN]
    assert found["embedding"].shape == (len(files), tiny.WIDTH)


def test_classification(stub: Any, classified: np.ndarray[Any, Any], files: list[bytes]) -> None:
    """The classification parameter gives `score:index:label`, the most probable first."""
    asked = request(files, outputs=["probabilities"])
    asked.outputs[0].parameters["classification"].int64_param = 2
    (rows,) = outputs(stub.ModelInfer(asked)).values()
    for row, label, probabilities in zip(rows, SHOWN, classified, strict=True):
        score, index, name = row[0].split(":")
        assert (LABELS[int(index)], name) == (label, label)
        assert float(score) == pytest.approx(probabilities.max(), abs=2e-6)
        assert len(row) == 2


def test_a_bad_image_fails_the_call(stub: Any) -> None:
    """The protocol has no errors of single images: the call's error names the first one's index."""
    error = failure(lambda: stub.ModelInfer(request([PHOTO, PHOTO, b"nonsense", b""])))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")
    assert "image 2: the image (8 bytes) has an unknown format; supported are JPEG" in str(error)
    assert fields(error) == ["images[2]"]
    error = failure(lambda: stub.ModelInfer(request([PHOTO, without_palette()])))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")


def test_pixels_of_another_model_fail_the_call(stub: Any) -> None:
    """Pixels of another size are told the model's."""
    error = failure(lambda: stub.ModelInfer(request(np.zeros((1, 24, 24, 3), dtype=np.uint8))))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "PIXELS_INVALID")
    assert "image 0: the image has shape (24, 24, 3); the model takes (16, 16, 3)" in str(error)


@pytest.mark.parametrize(
    ("changed", "code", "field"),
    [
        ({"model": "unknown"}, "NOT_FOUND", None),
        ({"model": "../colours"}, "NOT_FOUND", None),
        ({"model": ""}, "INVALID_ARGUMENT", "model_name"),
        ({"model_version": "9"}, "NOT_FOUND", None),
        ({"model_version": "-1"}, "INVALID_ARGUMENT", "model_version"),
        ({"model_version": "latest"}, "INVALID_ARGUMENT", "model_version"),
        ({"model_version": "9" * 40}, "INVALID_ARGUMENT", "model_version"),
        ({"given": [PHOTO] * 17}, "INVALID_ARGUMENT", "images"),
        ({"given": []}, "INVALID_ARGUMENT", "inputs[0].shape"),
        ({"outputs": ["label"]}, "INVALID_ARGUMENT", "outputs[0].name"),
        ({"parameters": {"timeout": pb.InferParameter()}}, "INVALID_ARGUMENT", "parameters"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    stub: Any, changed: dict[str, Any], code: str, field: str | None
) -> None:
    """Each wrong request has its code of the one table, and names the field when one is wrong."""
    error = failure(lambda: stub.ModelInfer(request(**{"given": [PHOTO], **changed})))
    assert error.code == code
    assert error.reason
    assert fields(error) == ([field] if field else [])


@pytest.mark.parametrize("how", ["deadline", "parameter"])
def test_time_that_passes_ends_the_call(stub: Any, how: str) -> None:
    """The call's deadline and the timeout parameter (microseconds) both are DEADLINE_EXCEEDED."""
    large = encode(Image.new("RGB", (4000, 4000)))  # takes far longer to decode, sixteen times
    asked, timeout = request([large] * 16), 60.0
    if how == "deadline":
        timeout = 0.01
    else:
        asked.parameters["timeout"].int64_param = 10_000
    assert failure(lambda: stub.ModelInfer(asked, timeout=timeout)).code == "DEADLINE_EXCEEDED"


def test_an_overload_says_when_to_retry(idle: Running) -> None:
    """What has no room in the queue of Classify is refused at once, with RetryInfo."""
    large = encode(Image.new("RGB", (2000, 2000)))
    with grpc.insecure_channel(idle.address) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request([large] * 8)) for _ in range(4)]
        refused = [one for one in calls if one.exception() is not None]
        assert 1 <= len(refused) <= 3
        for one in refused:
            error = failure(one.result)
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in error.status.details)


def test_a_model_is_described(stub: Any, client: Client) -> None:
    """Metadata and config tell the tensors, as GetModel tells labels, width and preprocessing."""
    revision = client.model("colours").serving_revision
    spec = revision.backbone.preprocess
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
    assert (metadata.name, list(metadata.versions)) == ("colours", ["1"])
    assert {one.name: (one.datatype, list(one.shape)) for one in metadata.inputs} == {
        "images": ("BYTES", [-1, 1]),
        "pixels": ("UINT8", [-1, spec.crop, spec.crop, 3]),
    }
    assert {one.name: (one.datatype, list(one.shape)) for one in metadata.outputs} == {
        "probabilities": ("FP32", [-1, len(revision.labels)]),
        "logits": ("FP32", [-1, len(revision.labels)]),
        "embedding": ("FP32", [-1, revision.backbone.width]),
    }
    config = stub.ModelConfig(pb.ModelConfigRequest(name="colours", version="1")).config
    assert (config.name, config.max_batch_size) == ("colours", 16)
    for one, described in zip(
        [*config.input, *config.output], [*metadata.inputs, *metadata.outputs], strict=True
    ):
        assert (one.name, [-1, *one.dims]) == (described.name, list(described.shape))
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "resize": str(spec.resize),
        "crop": str(spec.crop),
        "interpolation": spec.interpolation,
    }


def test_what_is_described_can_be_asked(stub: Any) -> None:
    """A request made from the metadata alone, for each input and all outputs, is answered."""
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
    files, pixels = metadata.inputs
    for tensor, contents in (
        (files, infers.request([PHOTO, PHOTO]).raw_input_contents[0]),
        (pixels, bytes(2 * int(np.prod(pixels.shape[1:])))),
    ):
        asked = pb.ModelInferRequest(model_name=metadata.name, model_version=metadata.versions[0])
        asked.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[2, *tensor.shape[1:]])
        asked.raw_input_contents.append(contents)
        for one in metadata.outputs:
            asked.outputs.add(name=one.name)
        response = stub.ModelInfer(asked)
        assert [(one.name, one.datatype, list(one.shape)) for one in response.outputs] == [
            (one.name, one.datatype, [2, *one.shape[1:]]) for one in metadata.outputs
        ]


def test_versions_are_revisions(stub: Any, server: Running, model: str) -> None:
    """Every revision answers by its number, serving or not; one that was rejected does not."""
    repository = Repository(server.repository)
    manifest = repository.manifest(model, 1)
    tiny.publish_copy(repository, manifest)
    rejection = Rejection(gate=Gate(), failures=("it forgot too much",))
    tiny.publish_copy(repository, replace(manifest, rejection=rejection))
    for version, answered in (("", "1"), ("1", "1"), ("2", "2")):
        assert stub.ModelReady(pb.ModelReadyRequest(name=model, version=version)).ready
        response = stub.ModelInfer(request([PHOTO], model=model, model_version=version))
        assert response.model_version == answered
    assert not stub.ModelReady(pb.ModelReadyRequest(name=model, version="3")).ready
    error = failure(lambda: stub.ModelInfer(request([PHOTO], model=model, model_version="3")))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "REVISION_REJECTED")
    for version, code in (("3", "FAILED_PRECONDITION"), ("4", "NOT_FOUND")):
        for call in (
            lambda v=version: stub.ModelMetadata(pb.ModelMetadataRequest(name=model, version=v)),
            lambda v=version: stub.ModelConfig(pb.ModelConfigRequest(name=model, version=v)),
            lambda v=version: stub.ModelStatistics(
                pb.ModelStatisticsRequest(name=model, version=v)
            ),
        ):
            assert failure(call).code == code


def test_what_is_not_there_is_not_ready(stub: Any) -> None:
    """Who waits for a model or a revision is told that it is not ready, not that it errs."""
    for name, version in (("unknown", ""), ("colours", "9")):
        assert not stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready
    error = failure(lambda: stub.ModelReady(pb.ModelReadyRequest(name="colours", version="new")))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", ["version"])


def test_the_server_is_described(stub: Any) -> None:
    """It lives, is ready, and names the extensions that it has."""
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    metadata = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "topwork"
    assert set(metadata.extensions) == {"classification", "model_configuration", "statistics"}


def test_statistics_count_images_and_calls(stub: Any, client: Client, model: str) -> None:
    """What Classify and ModelInfer did for a revision, together; a failed call by itself."""

    def statistics() -> pb.ModelStatistics:
        (found,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
        return found  # type: ignore[no-any-return]  # the stub is untyped

    before = statistics()
    assert (before.name, before.version) == (model, "1")
    assert (before.inference_count, before.last_inference) == (0, 0)
    client.classify(model, [PHOTO, PHOTO])
    stub.ModelInfer(request([PHOTO] * 3, model=model))
    failure(lambda: stub.ModelInfer(request([b"nonsense"], model=model)))
    after, stats = statistics(), statistics().inference_stats
    assert (after.inference_count, after.execution_count) == (5, 5)
    assert after.last_inference > 10**12
    assert (stats.success.count, stats.fail.count) == (2, 1)
    assert stats.compute_infer.ns > 0
    assert 0 < stats.queue.ns < stats.success.ns
    every = stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert after in every
    assert "colours" in {one.name for one in every}


@pytest.fixture
def broken(server: Running) -> Iterator[str]:
    """Yield the name of a model whose revision is not there."""
    folder = server.repository / "models" / "broken"
    folder.mkdir()
    (folder / "serving.json").write_text('{"revision": 1}')
    yield "broken"
    (folder / "serving.json").unlink()
    folder.rmdir()


def test_the_index_lists_all_models(stub: Any, broken: str, model: str) -> None:
    """Models by name with the serving revision; one that cannot be loaded says so, if wanted."""

    def index(**asked: Any) -> dict[str, tuple[str, str]]:
        found = stub.RepositoryIndex(pb.RepositoryIndexRequest(**asked)).models
        names = [one.name for one in found]
        assert names == sorted(names)
        return {one.name: (one.version, one.state) for one in found}

    servers.eventually(lambda: broken in index())
    assert index()[broken] == ("", "UNAVAILABLE")
    assert index()["colours"] == index()[model] == ("1", "READY")
    assert broken not in index(ready=True)
    error = failure(lambda: index(repository_name="other"))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", ["repository_name"])


def test_calls_are_logged_and_counted_as_others_are(stub: Any, server: Running) -> None:
    """A call has its access line, with the reason when it failed."""
    failure(lambda: stub.ModelInfer(request([PHOTO], model="logged-elsewhere")))

    def line() -> dict[str, Any] | None:
        lines = [fact for fact in server.facts if "logged-elsewhere" in str(fact.get("error"))]
        return lines[0] if lines else None

    found = servers.eventually(line)
    assert (found["event"], found["code"], found["reason"]) == ("call", "NOT_FOUND", "NOT_FOUND")
    assert found["method"] == "/inference.GRPCInferenceService/ModelInfer"
