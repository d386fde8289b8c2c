"""Open Inference Protocol over the wire: the same results, limits and errors as Classify."""

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
    """Return a stub of the service; untyped like gRPC's own stubs."""
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
    """Return the probabilities (N, 4) of Classify for the files, in label order."""
    answer = client.classify("colours", files)
    probabilities = np.zeros((len(files), len(LABELS)), dtype=np.float32)
    for row, result in zip(probabilities, answer.results, strict=True):
        for label, probability in result.predictions:
            row[LABELS.index(label)] = probability
    return probabilities


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["files", "uint8", "float32"])
def test_model_infer_agrees_with_classify(
    stub: Any, files: list[bytes], classified: np.ndarray[Any, Any], kind: str, raw: bool
) -> None:
    """Encoded or preprocessed images, raw or typed, get the same probabilities as in Classify."""
    images: Any = files
    if kind != "files":
        images = np.stack([preprocess(file, tiny.SPEC) for file in files]).astype(kind)
    response = stub.ModelInfer(request(images, raw=raw, id="number 5"))
    assert (response.model_name, response.model_version, response.id) == (
        "colours",
        "1",
        "number 5",
    )
    arrays = outputs(response)
    assert list(arrays) == ["probabilities", "logits", "embedding"]
    np.testing.assert_allclose(arrays["probabilities"], classified, atol=1e-6)
    assert arrays["logits"].argmax(axis=1).tolist() == [LABELS.index(label) for label in SHOWN]
    assert arrays["embedding"].shape == (len(files), tiny.WIDTH)


def test_classification_parameter_gives_labels(
    stub: Any, classified: np.ndarray[Any, Any], files: list[bytes]
) -> None:
    """The classification parameter gives `score:index:label`, the most probable first."""
    infer = request(files, outputs=["probabilities"])
    infer.outputs[0].parameters["classification"].int64_param = 2
    (rows,) = outputs(stub.ModelInfer(infer)).values()
    for row, label, probabilities in zip(rows, SHOWN, classified, strict=True):
        score, index, name = row[0].split(":")
        assert (LABELS[int(index)], name) == (label, label)
        assert float(score) == pytest.approx(probabilities.max(), abs=2e-6)
        assert len(row) == 2


def test_a_bad_image_fails_the_call(stub: Any) -> None:
    """The error of the call names the index of the first bad image."""
    error = failure(lambda: stub.ModelInfer(request([PHOTO, PHOTO, b"nonsense", b""])))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")
    assert "image 2: the image (8 bytes) has an unknown format; supported are JPEG" in str(error)
    assert fields(error) == ["images[2]"]
    error = failure(lambda: stub.ModelInfer(request([PHOTO, without_palette()])))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")


def test_pixels_of_another_size_fail_the_call(stub: Any) -> None:
    """The error of pixels of a wrong size has the model's size."""
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
        ({"images": [PHOTO] * 17}, "INVALID_ARGUMENT", "images"),
        ({"images": []}, "INVALID_ARGUMENT", "inputs[0].shape"),
        ({"outputs": ["label"]}, "INVALID_ARGUMENT", "outputs[0].name"),
        ({"parameters": {"timeout": pb.InferParameter()}}, "INVALID_ARGUMENT", "parameters"),
    ],
)
def test_model_infer_names_the_field_of_an_invalid_request(
    stub: Any, changed: dict[str, Any], code: str, field: str | None
) -> None:
    """Each invalid request has the same code as in Classify and names the invalid field."""
    error = failure(lambda: stub.ModelInfer(request(**{"images": [PHOTO], **changed})))
    assert error.code == code
    assert error.reason
    assert fields(error) == ([field] if field else [])


@pytest.mark.parametrize("how", ["deadline", "parameter"])
def test_an_exceeded_deadline_or_timeout_ends_the_call(stub: Any, how: str) -> None:
    """The call's deadline and the timeout parameter (microseconds) end in DEADLINE_EXCEEDED."""
    large = encode(Image.new("RGB", (4000, 4000)))  # sixteen of them take far longer to decode
    infer, timeout = request([large] * 16), 60.0
    if how == "deadline":
        timeout = 0.01
    else:
        infer.parameters["timeout"].int64_param = 10_000
    assert failure(lambda: stub.ModelInfer(infer, timeout=timeout)).code == "DEADLINE_EXCEEDED"


def test_an_overloaded_server_says_when_to_retry(idle: Running) -> None:
    """Requests beyond the queue's capacity are refused at once with RetryInfo."""
    large = encode(Image.new("RGB", (2000, 2000)))
    with grpc.insecure_channel(idle.address) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request([large] * 8)) for _ in range(4)]
        refused = [call for call in calls if call.exception() is not None]
        assert 1 <= len(refused) <= 3
        for call in refused:
            error = failure(call.result)
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in error.status.details)


def test_metadata_and_config_describe_the_tensors(stub: Any, client: Client) -> None:
    """ModelMetadata and ModelConfig have the shapes of GetModel's labels, width and crop."""
    revision = client.model("colours").serving_revision
    spec = revision.backbone.preprocess
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
    assert (metadata.name, list(metadata.versions)) == ("colours", ["1"])
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs} == {
        "images": ("BYTES", [-1, 1]),
        "pixels": ("UINT8", [-1, spec.crop, spec.crop, 3]),
    }
    assert {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs} == {
        "probabilities": ("FP32", [-1, len(revision.labels)]),
        "logits": ("FP32", [-1, len(revision.labels)]),
        "embedding": ("FP32", [-1, revision.backbone.width]),
    }
    config = stub.ModelConfig(pb.ModelConfigRequest(name="colours", version="1")).config
    assert (config.name, config.max_batch_size) == ("colours", 16)
    for tensor, described in zip(
        [*config.input, *config.output], [*metadata.inputs, *metadata.outputs], strict=True
    ):
        assert (tensor.name, [-1, *tensor.dims]) == (described.name, list(described.shape))
    assert {name: value.string_value for name, value in config.parameters.items()} == {
        "resize": str(spec.resize),
        "crop": str(spec.crop),
        "interpolation": spec.interpolation,
    }


def test_a_request_made_from_the_metadata_is_answered(stub: Any) -> None:
    """A request made from the metadata only is answered, for each input and all outputs."""
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"))
    files, pixels = metadata.inputs
    for tensor, contents in (
        (files, infers.request([PHOTO, PHOTO]).raw_input_contents[0]),
        (pixels, bytes(2 * int(np.prod(pixels.shape[1:])))),
    ):
        infer = pb.ModelInferRequest(model_name=metadata.name, model_version=metadata.versions[0])
        infer.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[2, *tensor.shape[1:]])
        infer.raw_input_contents.append(contents)
        for output in metadata.outputs:
            infer.outputs.add(name=output.name)
        response = stub.ModelInfer(infer)
        assert [(out.name, out.datatype, list(out.shape)) for out in response.outputs] == [
            (out.name, out.datatype, [2, *out.shape[1:]]) for out in metadata.outputs
        ]


def test_versions_are_revisions(stub: Any, server: Running, model: str) -> None:
    """Every revision answers by its number, serving or not, except a rejected revision."""
    repository = Repository(server.repository)
    manifest = repository.manifest(model, 1)
    tiny.publish_copy(repository, manifest)
    rejection = Rejection(gate=Gate(), failures=("recall 0.5 is below 0.6",))
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


def test_an_unknown_model_is_not_ready(stub: Any) -> None:
    """ModelReady of an unknown model or revision is false, not an error."""
    for name, version in (("unknown", ""), ("colours", "9")):
        assert not stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready
    error = failure(lambda: stub.ModelReady(pb.ModelReadyRequest(name="colours", version="new")))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", ["version"])


def test_the_server_is_live_and_lists_its_extensions(stub: Any) -> None:
    """The server is live and ready, and its metadata has name and extensions."""
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    metadata = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "topwork"
    assert set(metadata.extensions) == {"classification", "model_configuration", "statistics"}


def test_statistics_count_images_and_calls(stub: Any, client: Client, model: str) -> None:
    """Statistics sum Classify and ModelInfer of a revision, and count failed calls."""

    def statistics() -> pb.ModelStatistics:
        (stats,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name=model)).model_stats
        return stats  # type: ignore[no-any-return]  # the stub is untyped

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
    assert "colours" in {model.name for model in every}


@pytest.fixture
def broken(server: Running) -> Iterator[str]:
    """Yield the name of a model whose revision does not exist."""
    folder = server.repository / "models" / "broken"
    folder.mkdir()
    (folder / "serving.json").write_text('{"revision": 1}')
    yield "broken"
    (folder / "serving.json").unlink()
    folder.rmdir()


def test_the_index_lists_all_models(stub: Any, broken: str, model: str) -> None:
    """The index has all models with the serving revision; an unloadable one is UNAVAILABLE."""

    def index(**fields: Any) -> dict[str, tuple[str, str]]:
        models = stub.RepositoryIndex(pb.RepositoryIndexRequest(**fields)).models
        names = [model.name for model in models]
        assert names == sorted(names)
        return {model.name: (model.version, model.state) for model in models}

    servers.eventually(lambda: broken in index())
    assert index()[broken] == ("", "UNAVAILABLE")
    assert index()["colours"] == index()[model] == ("1", "READY")
    assert broken not in index(ready=True)
    error = failure(lambda: index(repository_name="other"))
    assert (error.code, fields(error)) == ("INVALID_ARGUMENT", ["repository_name"])


def test_calls_have_an_access_line(stub: Any, server: Running) -> None:
    """A failed call has an access line with its reason."""
    failure(lambda: stub.ModelInfer(request([PHOTO], model="logged-elsewhere")))

    def line() -> dict[str, Any] | None:
        lines = [
            entry for entry in server.log_entries if "logged-elsewhere" in str(entry.get("error"))
        ]
        return lines[0] if lines else None

    entry = servers.eventually(line)
    assert (entry["event"], entry["code"], entry["reason"]) == ("call", "NOT_FOUND", "NOT_FOUND")
    assert entry["method"] == "/inference.GRPCInferenceService/ModelInfer"
