"""Peer: mosec, a Rust front end with a Python process for each core, one image at a time.

python with_mosec.py MODEL_DIRECTORY PORT CORES
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.bare import Bare
from mosec import Server, Worker  # type: ignore[import-not-found]  # in the peer's environment


class Classify(Worker):  # type: ignore[misc]  # untyped here
    """Photo in, JSON out."""

    def __init__(self) -> None:
        super().__init__()
        self._model = Bare(Path(os.environ["MODEL_DIRECTORY"]), threads=1)

    def deserialize(self, data: bytes) -> bytes:
        """Return the body unchanged."""
        return data

    def forward(self, data: bytes) -> bytes:
        """Classify one photo."""
        return self._model.answer(data)

    def serialize(self, data: bytes) -> bytes:
        """Return the answer unchanged."""
        return data


if __name__ == "__main__":
    _, directory, port, cores = sys.argv
    os.environ["MODEL_DIRECTORY"] = directory  # workers are spawned and see no arguments
    sys.argv[1:] = ["--port", port, "--address", "127.0.0.1"]  # which mosec reads
    server = Server()
    server.append_worker(Classify, num=int(cores))
    server.run()
