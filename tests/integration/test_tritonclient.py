"""NVIDIA's tritonclient from PyPI against a server: `make tritonclient`."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import kinds, servers, tiny
from support.pictures import encode, picture
from support.servers import Running

from topwork import Client
from topwork.inputs.image import preprocess

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
WHY = "tritonclient needs another grpcio and protobuf than ours: make tritonclient"
"""Reason to skip a test where its environment is missing."""
LABELS = ["amber", "blue", "crimson", "green"]
SHOWN = ["green", "amber", "blue"]


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """Return a JPEG of each label shown."""
    made = []
    for number, label in enumerate(SHOWN):
        with Image.open(io.BytesIO(picture(label, 80 + number))) as image:
            made.append(encode(image, "JPEG"))
    return made


@pytest.fixture(scope="module")
def answers(
    server: Running, files: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return the client's answers; it runs in a separate process and environment."""
    if not PYTHON.exists():
        pytest.skip(WHY)
    return call(
        "tritonclient_calls.py", server.address, files, tmp_path_factory.mktemp("tritonclient")
    )


def call(script: str, address: str, files: list[bytes], folder: Path) -> dict[str, Any]:
    """Return what a script of calls prints."""
    for number, file in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(file)
    np.save(folder / "pixels.npy", np.stack([preprocess(file, tiny.SPEC) for file in files]))
    done = subprocess.run(
        [PYTHON, ROOT / "tests" / "support" / script, address, "colours", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("way", ["BYTES", "column", "UINT8", "FP32", "aio"])
def test_tritonclient_agrees_with_classify(
    answers: dict[str, Any], client: Client, files: list[bytes], way: str
) -> None:
    """The same JPEGs get the same probabilities from Classify and from tritonclient."""
    results = client.classify("colours", files).results
    for row, result in zip(answers["probabilities"][way], results, strict=True):
        for label, probability in result.predictions:
            assert row[LABELS.index(label)] == pytest.approx(probability, abs=1e-6)


def test_tritonclient_gets_all_outputs_of_a_version(answers: dict[str, Any]) -> None:
    """A request without outputs gets all of them, with its id and version."""
    assert answers["all"] == {
        "probabilities": [3, 4],
        "logits": [3, 4],
        "embedding": [3, tiny.WIDTH],
    }
    assert answers["answer"] == ["7", "1"]


def test_tritonclient_gets_classes(answers: dict[str, Any]) -> None:
    """`tritonclient`'s class_count sets the classification parameter."""
    assert [row[0].split(":")[1:] for row in answers["classes"]] == [
        [str(LABELS.index(label)), label] for label in SHOWN
    ]
    assert {len(row) for row in answers["classes"]} == {2}


def test_tritonclient_reads_metadata_and_statistics(answers: dict[str, Any]) -> None:
    """Health, metadata, config, index and statistics have the expected values."""
    assert (answers["live"], answers["ready"], answers["model_ready"]) == (True, True, True)
    assert not answers["other_ready"]
    assert answers["server"]["name"] == "topwork"
    names = ["images", "pixels"]
    assert [tensor["name"] for tensor in answers["metadata"]["inputs"]] == names
    assert [tensor["name"] for tensor in answers["config"]["config"]["input"]] == names
    assert {"name": "colours", "version": "1", "state": "READY"} in answers["index"]["models"]
    assert int(answers["statistics"][0]["inference_count"]) >= 18


def test_tritonclient_gets_the_index_of_a_bad_image(answers: dict[str, Any]) -> None:
    """`tritonclient`'s exception has the code and the image's index."""
    status, message = answers["error"]
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith("image 0: the image (4 bytes)")


def test_tritonclient_over_http_agrees_with_classify(
    server: Running, client: Client, files: list[bytes], tmp_path: Path
) -> None:
    """tritonclient.http gets the same values, with binary and with JSON tensors."""
    if not PYTHON.exists():
        pytest.skip(WHY)
    answers = call("tritonclient_http_calls.py", server.http, files, tmp_path)
    results = client.classify("colours", files).results
    assert len(answers["probabilities"]) == 13
    for rows in answers["probabilities"].values():
        for row, result in zip(rows, results, strict=True):
            for label, probability in result.predictions:
                assert row[LABELS.index(label)] == pytest.approx(probability, abs=1e-6)
    test_tritonclient_gets_all_outputs_of_a_version(answers)
    test_tritonclient_gets_classes(answers)
    assert (answers["live"], answers["ready"], answers["model_ready"]) == (True, True, True)
    assert not answers["other_ready"]
    assert answers["metadata"]["inputs"][0] == {
        "name": "images",
        "datatype": "BYTES",
        "shape": [-1, 1],
    }
    assert answers["config"]["output"][0]["dims"] == [len(LABELS)]
    assert {"name": "colours", "version": "1", "state": "READY", "reason": ""} in answers["index"]
    assert answers["statistics"][0]["inference_count"] >= 13 * len(files)
    status, message = answers["error"]
    assert status == "400"
    assert message.startswith("image 0: the image (4 bytes)")


def test_tritonclient_classifies_texts_and_embeddings(tmp_path: Path) -> None:
    """The unmodified client gets the probabilities of Classify by gRPC, HTTP and JSON."""
    if not PYTHON.exists():
        pytest.skip(WHY)
    repository = kinds.repository(tmp_path / "repository")
    samples = [sample for sample in kinds.KINDS if sample.name in {"text", "embedding"}]
    contents = [
        [content for label in sample.labels[:4] for content in sample.contents(label, 2, 100)]
        for sample in samples
    ]
    wanted = [
        {
            "model": sample.model,
            "tensor": sample.tensor[0],
            "datatype": sample.tensor[1],
            "values": [
                content.decode() if sample is kinds.TEXT else np.frombuffer(content, "<f4").tolist()
                for content in own
            ],
        }
        for sample, own in zip(samples, contents, strict=True)
    ]
    with (
        servers.running(repository.root, worker=False, http_port="127.0.0.1:0") as server,
        Client(server.address) as client,
    ):
        script = ROOT / "tests" / "support" / "tritonclient_kinds.py"
        arguments = [server.address, server.http, json.dumps(wanted)]
        done = subprocess.run(
            [PYTHON, script, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for sample, own, answer in zip(samples, contents, json.loads(done.stdout), strict=True):
            (given,) = answer["inputs"]
            assert (given["name"], given["datatype"]) == sample.tensor
            labels = client.model(sample.model).serving_revision.labels
            results = client.classify(sample.model, [*map(sample.given, own)], top_k=4).results
            expected = [[dict(result.predictions)[label] for label in labels] for result in results]
            for way in ("grpc", "http", "json"):
                assert np.abs(np.array(answer[way]) - expected).max() < 1e-6, way
