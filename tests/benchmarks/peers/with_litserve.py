"""Peer: LitServe, a worker process for each core; a photo is base64 in JSON, as in its guide.

python with_litserve.py MODEL_DIRECTORY PORT CORES
"""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]  # in the peer's environment
from benchmarks.bare import Bare


class Classify(litserve.LitAPI):  # type: ignore[misc]  # untyped here
    """Photo in, JSON out. LitServe reads the annotations."""

    def setup(self, device: str) -> None:
        """Load the model into a worker; ``device`` is always the CPU."""
        del device
        self._model = Bare(Path(sys.argv[1]), threads=1)

    def decode_request(self, request: dict[str, Any]) -> bytes:
        """Return the photo."""
        return base64.b64decode(request["photo"])

    def predict(self, photo: bytes) -> list[list[float]]:
        """Classify one photo."""
        return self._model.top5(photo)

    def encode_response(self, top5: list[list[float]]) -> dict[str, Any]:
        """Return the answer."""
        return {"top5": top5}


if __name__ == "__main__":
    server = litserve.LitServer(Classify(), accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False
    )
