"""NVIDIA's own client, as its package index has it, asks a server: `make tritonclient`."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.pictures import encode, picture
from support.servers import Running

from topwork import Client
from topwork.inputs.image import preprocess

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
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
def found(
    server: Running, files: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return what the client got; it runs in a process and an environment of its own."""
    if not PYTHON.exists():
        pytest.skip("tritonclient needs another grpcio and protobuf than ours: make tritonclient")
    folder = tmp_path_factory.mktemp("tritonclient")
    for number, one in enumerate(files):
        (folder / f"{number}.jpg").write_bytes(one)
    np.save(folder / "pixels.npy", np.stack([preprocess(one, tiny.SPEC) for one in files]))
    script = ROOT / "tests" / "support" / "tritonclient_asks.py"
    done = subprocess.run(
        [PYTHON, script, server.address, "colours", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("way", ["BYTES", "column", "UINT8", "FP32", "aio"])
def test_it_gets_what_classify_says(
    found: dict[str, Any], client: Client, files: list[bytes], way: str
) -> None:
    """The same JPEGs through Classify and through NVIDIA's client have the same probabilities."""
    results = client.classify("colours", files).results
    for row, result in zip(found["probabilities"][way], results, strict=True):
        for one in result.predictions:
            assert row[LABELS.index(one.label)] == pytest.approx(one.probability, abs=1e-6)


def test_it_gets_all_outputs_of_a_version(found: dict[str, Any]) -> None:
    """Without a choice all outputs come, with the id and the version of the request."""
    assert found["all"] == {
        "probabilities": [3, 4],
        "logits": [3, 4],
        "embedding": [3, tiny.WIDTH],
    }
    assert found["answer"] == ["7", "1"]


def test_it_gets_classes(found: dict[str, Any]) -> None:
    """Its class_count is the classification parameter."""
    assert [row[0].split(":")[1:] for row in found["classes"]] == [
        [str(LABELS.index(label)), label] for label in SHOWN
    ]
    assert {len(row) for row in found["classes"]} == {2}


def test_it_reads_what_the_server_says_of_itself(found: dict[str, Any]) -> None:
    """Health, metadata, config, index and statistics are what it expects."""
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, True)
    assert not found["other_ready"]
    assert found["server"]["name"] == "topwork"
    names = ["images", "pixels"]
    assert [one["name"] for one in found["metadata"]["inputs"]] == names
    assert [one["name"] for one in found["config"]["config"]["input"]] == names
    assert {"name": "colours", "version": "1", "state": "READY"} in found["index"]["models"]
    assert int(found["statistics"][0]["inference_count"]) >= 18


def test_it_is_told_which_image_is_bad(found: dict[str, Any]) -> None:
    """Its exception has the code, and the image's index."""
    status, message = found["error"]
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith("image 0: the image (4 bytes)")
