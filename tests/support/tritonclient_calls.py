"""Calls every method of NVIDIA's tritonclient and prints the responses as JSON.

``python tritonclient_calls.py ADDRESS MODEL FOLDER`` needs an environment with tritonclient and
without Topwork: both have a protobuf package `inference`, and a process can load only one. FOLDER
has encoded images, and their pixels in pixels.npy (N, crop, crop, 3).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as blocking
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException


def inputs(values: Any, name: str, datatype: str) -> list[blocking.InferInput]:
    """Return the single input of a request."""
    tensor = blocking.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def main(address: str, model: str, folder: Path) -> dict[str, Any]:
    """Return the responses to all methods of the client."""
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    files = inputs(np.array(images, dtype=np.object_), "images", "BYTES")
    pixels = np.load(folder / "pixels.npy")
    requests = {
        "BYTES": files,
        "column": inputs(np.array(images, dtype=np.object_)[:, None], "images", "BYTES"),
        "UINT8": inputs(pixels, "pixels", "UINT8"),
        "FP32": inputs(pixels.astype(np.float32), "pixels", "FP32"),
    }
    wanted = [blocking.InferRequestedOutput("probabilities")]
    with blocking.InferenceServerClient(address) as client:
        answers: dict[str, Any] = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "other_ready": client.is_model_ready("unknown"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(model, as_json=True),
            "config": client.get_model_config(model, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "probabilities": {
                name: client.infer(model, tensors, outputs=wanted)
                .as_numpy("probabilities")
                .tolist()
                for name, tensors in requests.items()
            },
        }
        every = client.infer(model, files, request_id="7", model_version="1")
        answers["all"] = {
            name: list(every.as_numpy(name).shape)
            for name in ("probabilities", "logits", "embedding")
        }
        answers["answer"] = [every.get_response().id, every.get_response().model_version]
        top = [blocking.InferRequestedOutput("probabilities", class_count=2)]
        texts = client.infer(model, files, outputs=top, timeout=10**7).as_numpy("probabilities")
        answers["classes"] = [[text.decode() for text in row] for row in texts]
        try:
            client.infer(model, inputs(np.array([b"junk"], dtype=np.object_), "images", "BYTES"))
        except InferenceServerException as error:
            answers["error"] = [error.status(), error.message()]
        statistics = client.get_inference_statistics(model, as_json=True)
    answers["statistics"] = statistics["model_stats"]

    async def ask() -> Any:
        async with aio.InferenceServerClient(address) as client:
            answer = await client.infer(model, files, outputs=wanted)
            return answer.as_numpy("probabilities").tolist()

    answers["probabilities"]["aio"] = asyncio.run(ask())
    return answers


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))  # noqa: T201  # its answer
