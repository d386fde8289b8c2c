"""Models of embeddings over the wire: scikit-learn's digits, nine labels and then the tenth."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from support import servers, spaces, tiny
from support.pictures import pictures
from support.servers import Command, Running, failure, fields

import topwork
from topwork import Client, LabelledImage, embeddings
from topwork.arrays import Float32Array
from topwork.bundle.maintenance.check import check
from topwork.bundle.store import Repository
from topwork.inference import inference_service_pb2 as oip
from topwork.inference import inference_service_pb2_grpc as oip_grpc
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import classifier_service_pb2_grpc as classify_grpc
from topwork.v1 import input_pb2 as input_pb

SPACE = "digits-8x8"
DATA, TARGETS = load_digits(return_X_y=True)
TRAIN, TEST, TRAIN_TARGETS, TEST_TARGETS = train_test_split(
    DATA.astype(np.float32), TARGETS, test_size=0.4, random_state=0, stratify=TARGETS
)


def digits(label: int) -> Float32Array:
    """Return the training rows of a digit."""
    return np.ascontiguousarray(TRAIN[label == TRAIN_TARGETS])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield a server with a model ``digits`` of all digits but 9, and one of images."""
    made = tiny.repository(tmp_path_factory.mktemp("embeddings") / "repository")
    with (
        servers.running(made.root, http_port="127.0.0.1:0") as started,
        Client(started.address) as client,
    ):
        created = client.create_model("digits", space=SPACE, width=64)
        assert created.input_kind == "embedding"
        assert (created.draft.backbone.embedding.space, created.draft.backbone.width) == (SPACE, 64)
        assert not created.draft.backbone.HasField("preprocess")
        classes = {str(digit): embeddings(digits(digit), space=SPACE) for digit in range(9)}
        *_, last = client.watch(client.add_classes("digits", classes).name)
        assert len(last.result().revision.labels) == 9
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    """Yield a client of the server."""
    with Client(server.address) as made:
        yield made


def accuracy(client: Client, model: str, rows: Float32Array, targets: Any) -> float:
    """Return the share of right answers."""
    results = client.predict(model, rows)
    found = [result.predictions[0].label for result in results]
    return float(
        np.mean([label == str(target) for label, target in zip(found, targets, strict=True)])
    )


def test_nine_digits_then_the_tenth(client: Client) -> None:
    """The tenth is unknown at first; then all are as good as a logistic regression finds them."""
    old = TEST_TARGETS < 9
    client.copy_model("digits", "story")
    before = accuracy(client, "story", TEST[old], TEST_TARGETS[old])
    nines = client.predict("story", TEST[~old])
    assert np.mean([bool(result.is_unknown) for result in nines]) > 0.4
    *_, last = client.watch(client.add_class("story", "9", digits(9)).name)
    assert last.result().images_used == len(digits(9))
    after = accuracy(client, "story", TEST, TEST_TARGETS)
    strengths = {"C": [0.1, 1.0, 10.0]}
    grid = GridSearchCV(LogisticRegression(max_iter=2000), strengths)
    reference = grid.fit(TRAIN / 16, TRAIN_TARGETS).score(TEST / 16, TEST_TARGETS)
    assert after >= reference - 0.01, f"{after:.4f} against {reference:.4f}"
    assert accuracy(client, "story", TEST[old], TEST_TARGETS[old]) >= before - 0.02


def test_model_in_this_process_gives_the_same_answers(server: Running, client: Client) -> None:
    """``topwork.open`` of the served repository."""
    opened = topwork.open(server.repository, "digits")
    rows = TEST[:7]
    there, here = client.classify("digits", rows).results, opened.predict(rows)
    assert here == list(there)
    assert list(opened.predict(iter(rows))) == here
    assert opened.explain(rows[0]).neighbours == client.explain("digits", rows[0]).neighbours


def test_explanation_has_neighbours_and_no_map(client: Client) -> None:
    """The nearest examples are the answer; the reason for the missing map is plain."""
    row = digits(3)[0]
    found = client.explain("digits", row)
    assert found.map is None
    assert "the client computes the embeddings" in found.map_unavailable
    assert (found.neighbours[0].label, round(found.neighbours[0].similarity, 4)) == ("3", 1.0)


def test_model_is_described_with_its_space(client: Client) -> None:
    """GetModel has kind, space and width; the other model takes images."""
    found = client.model("digits")
    assert found.input_kind == "embedding"
    assert found.serving_revision.backbone.embedding == input_pb.EmbeddingSpace(
        space=SPACE, width=64
    )
    assert client.model("colours").input_kind == "image"
    assert client.model("colours").serving_revision.backbone.preprocess.crop == 16


def test_bad_vector_is_its_own_error(client: Client) -> None:
    """NaN, width, space: errors of these inputs, with the value; the others are answered."""
    good = TEST[0]
    nan = good.copy()
    nan[5] = np.nan
    rows = [*embeddings(good[None]), *embeddings(nan[None]), *embeddings(good[None, :63])]
    rows += [*embeddings(good[None], space="other"), *embeddings(np.zeros((1, 64), np.float32))]
    results = client.classify("digits", rows).results
    assert [result.error is None for result in results] == [True, False, False, False, True]
    for result, text in zip(
        results[1:4], ("the value nan at 5", "has 63 numbers", "of the space 'other'"), strict=True
    ):
        assert result.error is not None
        assert result.error.reason == "EMBEDDING_INVALID"
        assert text in str(result.error)
    answers = list(client.classify_stream("digits", [good, nan]))
    assert [answer.result.error is None for answer in answers] == [True, False]


def test_other_kind_is_refused_with_both_names(client: Client) -> None:
    """Classify, the stream, Explain and uploads; nothing is stored."""
    image = pictures("amber", 6)
    rows = TEST[:6]
    for call in (
        lambda: client.classify("digits", image),
        lambda: list(client.classify_stream("digits", image)),
        lambda: client.explain("digits", image[0]),
        lambda: client.add_class("digits", "x", image),
        lambda: client.evaluate("digits", [LabelledImage(image[0], "1")]),
    ):
        error = failure(call)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INPUT_KIND")
        assert "'digits' takes inputs of the kind 'embedding', not 'image'" in str(error)
    for call in (
        lambda: client.classify("colours", rows),
        lambda: client.explain("colours", rows[0]),
        lambda: client.add_class("colours", "x", rows),
        lambda: client.add_classes("colours", {"x": rows}),
    ):
        error = failure(call)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INPUT_KIND")
        assert "'colours' takes inputs of the kind 'image', not 'embedding'" in str(error)


def test_malformed_requests_are_refused(server: Running) -> None:
    """Both fields, an empty input, too many: a sentence each, with the field."""
    good = input_pb.Input(embedding=input_pb.Embedding(values=TEST[0].tolist()))
    with grpc.insecure_channel(server.address) as channel:
        stub = classify_grpc.ClassifierServiceStub(channel)
        for request, text, field in (
            ({"images": [b"x"], "inputs": [good]}, "has 1 images and 1 inputs", "inputs"),
            ({"inputs": [good, input_pb.Input()]}, "inputs[1] is empty", "inputs[1]"),
            ({"inputs": [input_pb.Input()] * 10**6}, "1000000 images; the limit is", "images"),
            ({}, "the request has no image", "images"),
        ):
            message = classify_pb.ClassifyRequest(model="models/digits", **request)
            error = failure(lambda: stub.Classify(message))  # noqa: B023  # called at once
            assert error.code == "INVALID_ARGUMENT"
            assert text in str(error)
            assert fields(error) == [field]
        both = classify_pb.ExplainRequest(model="models/digits", image=b"x", input=good)
        assert "image and input; it must have one" in str(failure(lambda: stub.Explain(both)))


def test_upload_names_the_rows_that_do_not_fit(client: Client) -> None:
    """They are left out like unreadable images, and the label is learnt from the others."""
    client.copy_model("digits", "partly")
    nan = np.full(64, np.nan, np.float32)
    other = embeddings(digits(9)[:1], space="other")[0]
    named = [(f"row-{n}", row) for n, row in enumerate(digits(9))]
    operation = client.add_class("partly", "9", [*named, ("nan", nan), ("other", other)])
    *_, last = client.watch(operation.name)
    skipped = {image.display_name: image.error.message for image in last.result().skipped_images}
    assert skipped.keys() == {"nan", "other"}
    assert "the value nan at 0" in skipped["nan"]
    assert "of the space 'other'" in skipped["other"]


def test_evaluation_and_its_gate(client: Client) -> None:
    """A stored set of embeddings judges a later change."""
    client.copy_model("digits", "judged")
    old = TEST_TARGETS < 9
    images = [
        LabelledImage(row, str(target))
        for row, target in zip(TEST[old][:200], TEST_TARGETS[old][:200], strict=True)
    ]
    *_, last = client.watch(client.evaluate("judged", images, name="held-out", max_drop=0.5).name)
    assert last.evaluation().metrics.accuracy > 0.9
    *_, last = client.watch(client.add_class("judged", "9", digits(9)).name)
    assert client.get_evaluation("judged", "held-out", last.result().revision.revision).model


def test_open_inference_takes_fp32(server: Running, client: Client) -> None:
    """Metadata and Infer by raw and by typed contents; the answers are those of Classify."""
    rows = TEST[:3]
    expected = [
        {prediction.label: prediction.probability for prediction in result.predictions}
        for result in client.classify("digits", rows, top_k=9).results
    ]
    labels = client.model("digits").serving_revision.labels
    with grpc.insecure_channel(server.address) as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name="digits"))
        (tensor,) = metadata.inputs
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == (
            "embeddings",
            "FP32",
            [-1, 64],
        )
        config = stub.ModelConfig(oip.ModelConfigRequest(name="digits")).config
        assert config.parameters["space"].string_value == SPACE
        for raw in (True, False):
            request = oip.ModelInferRequest(model_name="digits")
            given = request.inputs.add(name="embeddings", datatype="FP32", shape=[3, 64])
            request.outputs.add(name="probabilities")
            if raw:
                request.raw_input_contents.append(rows.astype("<f4").tobytes())
            else:
                given.contents.fp32_contents.extend(rows.ravel().tolist())
            response = stub.ModelInfer(request)
            found = (
                np.frombuffer(response.raw_output_contents[0], "<f4")
                if raw
                else np.array(response.outputs[0].contents.fp32_contents)
            ).reshape(3, 9)
            for row, wanted in zip(found.tolist(), expected, strict=True):
                assert dict(zip(labels, row, strict=True)) == pytest.approx(wanted, abs=1e-6)
        given.shape[:] = [3, 32, 2]
        assert "it must be [N, width]" in str(failure(lambda: stub.ModelInfer(request)))


def post(server: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON answer of the gateway."""
    request = urllib.request.Request(  # the loopback
        f"http://{server.http}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310  # http of this host
        answer: dict[str, Any] = json.load(response)
    return answer


def test_http_takes_arrays_of_numbers(server: Running, client: Client) -> None:
    """JSON of the contract, and of the Open Inference Protocol."""
    row = TEST[4]
    label = client.classify("digits", row[None]).results[0].predictions[0].label
    body = {"inputs": [{"embedding": {"space": SPACE, "values": row.tolist()}}]}
    found = post(server, "/v1/models/digits:classify", body)
    assert found["results"][0]["classification"]["predictions"][0]["label"] == label
    tensor = {"name": "embeddings", "datatype": "FP32", "shape": [1, 64], "data": row.tolist()}
    answer = post(server, "/v2/models/digits/infer", {"inputs": [tensor]})
    assert len(answer["outputs"][0]["data"]) == 9


def test_commands(server: Running, topwork: Command) -> None:
    """Create, add-class, add-classes, classify, explain, describe from files of NumPy."""

    def run(*arguments: object) -> str:
        status, output, errors = topwork(*arguments, address=server.address)
        assert status == 0, errors
        return output

    run("create", "by-command", "--space", SPACE, "--width", 64)
    with TemporaryDirectory() as directory:
        root = Path(directory)
        labels = np.repeat(["0", "1"], 20)
        rows = np.concatenate([digits(0)[:20], digits(1)[:20]])
        np.savez(root / "two.npz", embeddings=rows, labels=labels, space=SPACE)
        np.save(root / "two.npy", digits(2)[:20])
        np.save(root / "test.npy", np.stack([digits(0)[30], digits(2)[30]]))
        np.save(root / "one.npy", digits(2)[30])
        np.save(root / "wide.npy", digits(2)[:2].astype(np.float64))
        run("add-classes", "--model", "by-command", root / "two.npz")
        run("add-class", "--model", "by-command", "--label", "2", root / "two.npy")
        lines = run("classify", "--model", "by-command", "--json", root / "test.npy").splitlines()
        found = [json.loads(line) for line in lines]
        assert [row["image"].rpartition("/")[2] for row in found] == ["test.npy[0]", "test.npy[1]"]
        assert [row["predictions"][0]["label"] for row in found] == ["0", "2"]
        assert "the client computes" in run("explain", "by-command", root / "one.npy")
        status, _, errors = topwork(
            "classify", "--model", "by-command", root / "wide.npy", address=server.address
        )
        assert (status, "float64; embeddings are float32" in errors) == (1, True)
    assert f"embeddings of the space {SPACE}" in run("describe", "by-command")
    assert SPACE in run("backbones")
    assert "embedding" in run("backbones")


def test_repository_is_sound_and_images_are_as_before(server: Running, client: Client) -> None:
    """Fsck has no error; a class of images is learnt beside models of embeddings."""
    *_, last = client.watch(client.add_class("colours", "violet", pictures("violet", 8)).name)
    assert last.result().revision.revision == 2
    answer = client.classify("colours", pictures("violet", 1)).results[0]
    assert answer.predictions[0].label == "violet"
    repository = Repository(server.repository)
    assert [each.text for each in check(repository) if each.severity == "error"] == []


def test_restarted_server_serves_embeddings(tmp_path: Path) -> None:
    """Without any backbone in the repository, and with encoder processes."""
    made = spaces.repository(tmp_path / "repository")
    with (
        servers.running(made.root, worker=False, cores=2) as started,
        Client(started.address) as it,
    ):
        found = it.classify("points", spaces.rows("b", 2, first=20))
        assert [result.predictions[0].label for result in found.results] == ["b", "b"]


def test_change_options_reach_models_of_embeddings(client: Client) -> None:
    """A dry run tells what would happen."""
    options = change_pb.ChangeOptions(validate_only=True)
    *_, last = client.watch(client.add_class("digits", "9", digits(9), options=options).name)
    assert "9" in last.result().revision.labels
    assert "9" not in client.model("digits").serving_revision.labels
