"""Calls every method of NVIDIA's tritonclient over HTTP and prints the responses as JSON.

``python tritonclient_http_calls.py ADDRESS MODEL FOLDER``; see tritonclient_calls.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as blocking
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException


def inputs(values: Any, name: str, datatype: str, *, binary: bool = True) -> list[Any]:
    """Return the single input of a request."""
    tensor = blocking.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return [tensor]


def main(address: str, model: str, folder: Path) -> dict[str, Any]:
    """Return the responses to all methods of the client."""
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    files = inputs(np.array(images, dtype=np.object_), "images", "BYTES")
    texts = np.array([base64.b64encode(image) for image in images], dtype=np.object_)
    pixels = np.load(folder / "pixels.npy")
    floats = pixels.astype(np.float32)
    requests = {
        "BYTES": files,
        "BYTES as JSON": inputs(texts, "images", "BYTES", binary=False),
        "UINT8": inputs(pixels, "pixels", "UINT8"),
        "UINT8 as JSON": inputs(pixels, "pixels", "UINT8", binary=False),
        "FP32": inputs(floats, "pixels", "FP32"),
        "FP32 as JSON": inputs(floats, "pixels", "FP32", binary=False),
    }
    wanted = [blocking.InferRequestedOutput("probabilities", binary_data=True)]
    as_json = [blocking.InferRequestedOutput("probabilities", binary_data=False)]
    client = blocking.InferenceServerClient(address)
    answers: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model, "1"),
        "other_ready": client.is_model_ready("unknown"),
        "server": client.get_server_metadata(),
        "metadata": client.get_model_metadata(model),
        "config": client.get_model_config(model),
        "index": client.get_model_repository_index(),
        "probabilities": {
            f"{name}, {way}": client.infer(model, tensors, outputs=outputs)
            .as_numpy("probabilities")
            .tolist()
            for name, tensors in requests.items()
            for way, outputs in (("binary", wanted), ("JSON", as_json))
        },
    }
    every = client.infer(model, files, request_id="7", model_version="1")
    names = ("probabilities", "logits", "embedding")
    answers["all"] = {name: list(every.as_numpy(name).shape) for name in names}
    answers["answer"] = [every.get_response()["id"], every.get_response()["model_version"]]
    top = [blocking.InferRequestedOutput("probabilities", class_count=2)]
    found = client.infer(model, files, outputs=top, timeout=10**7).as_numpy("probabilities")
    answers["classes"] = [[text.decode() for text in row] for row in found]
    try:
        client.infer(model, inputs(np.array([b"junk"], dtype=np.object_), "images", "BYTES"))
    except InferenceServerException as error:
        answers["error"] = [error.status(), error.message()]
    answers["statistics"] = client.get_inference_statistics(model)["model_stats"]
    client.close()

    async def ask() -> Any:
        async with aio.InferenceServerClient(address) as client:
            answer = await client.infer(model, files, outputs=wanted)
            return answer.as_numpy("probabilities").tolist()

    answers["probabilities"]["aio"] = asyncio.run(ask())
    return answers


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))  # noqa: T201  # its answer
