"""What NVIDIA's own client gets from a server, as JSON.

``python tritonclient_asks.py ADDRESS MODEL FOLDER`` in an environment with tritonclient, which has
none of ours: both bring a protobuf package `inference`, and one process holds only one. FOLDER has
encoded images, and pixels.npy (N, crop, crop, 3) of the same.
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
    """Return a request's one input."""
    tensor = blocking.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(values)
    return [tensor]


def main(address: str, model: str, folder: Path) -> dict[str, Any]:
    """Ask all that the client has a method for."""
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    files = inputs(np.array(images, dtype=np.object_), "images", "BYTES")
    pixels = np.load(folder / "pixels.npy")
    asked = {
        "BYTES": files,
        "column": inputs(np.array(images, dtype=np.object_)[:, None], "images", "BYTES"),
        "UINT8": inputs(pixels, "pixels", "UINT8"),
        "FP32": inputs(pixels.astype(np.float32), "pixels", "FP32"),
    }
    wanted = [blocking.InferRequestedOutput("probabilities")]
    with blocking.InferenceServerClient(address) as client:
        found: dict[str, Any] = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "other_ready": client.is_model_ready("unknown"),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(model, as_json=True),
            "config": client.get_model_config(model, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
            "probabilities": {
                name: client.infer(model, one, outputs=wanted).as_numpy("probabilities").tolist()
                for name, one in asked.items()
            },
        }
        every = client.infer(model, files, request_id="7", model_version="1")
        found["all"] = {
            name: list(every.as_numpy(name).shape)
            for name in ("probabilities", "logits", "embedding")
        }
        found["answer"] = [every.get_response().id, every.get_response().model_version]
        top = [blocking.InferRequestedOutput("probabilities", class_count=2)]
        texts = client.infer(model, files, outputs=top, timeout=10**7).as_numpy("probabilities")
        found["classes"] = [[one.decode() for one in row] for row in texts]
        try:
            client.infer(model, inputs(np.array([b"junk"], dtype=np.object_), "images", "BYTES"))
        except InferenceServerException as error:
            found["error"] = [error.status(), error.message()]
        statistics = client.get_inference_statistics(model, as_json=True)
    found["statistics"] = statistics["model_stats"]

    async def ask() -> Any:
        async with aio.InferenceServerClient(address) as client:
            answer = await client.infer(model, files, outputs=wanted)
            return answer.as_numpy("probabilities").tolist()

    found["probabilities"]["aio"] = asyncio.run(ask())
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))  # noqa: T201  # its answer
