"""Bare model (decoder, backbone, head) that the ceiling and every peer run.

Peers import it in their environments, so it needs only NumPy, Pillow and ONNX Runtime.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from topwork.inputs.image import Pixels, preprocess
from topwork.inputs.preprocess import PreprocessSpec


def write(directory: Path, *, backbone: bytes, head: bytes, spec: PreprocessSpec) -> None:
    """Write the files of a bare model into a new directory."""
    directory.mkdir(parents=True)
    (directory / "backbone.onnx").write_bytes(backbone)
    (directory / "head.onnx").write_bytes(head)
    (directory / "spec.json").write_text(json.dumps(asdict(spec)))


class Bare:
    """A model in memory, thread-safe."""

    def __init__(self, directory: Path, *, threads: int | None, spin: bool = False) -> None:
        """Load the model; a run uses ``threads`` threads, or ONNX Runtime's default if None."""
        self._spec = PreprocessSpec(**json.loads((directory / "spec.json").read_text()))
        self._backbone = _open(directory / "backbone.onnx", threads, spin)
        self._head = _open(directory / "head.onnx", 1, spin=False)
        self._input = self._backbone.get_inputs()[0].name
        self._embedding = self._head.get_inputs()[0].name
        crop = self._spec.crop
        self.embed(np.zeros((crop, crop, 3), dtype=np.uint8))  # the first run plans memory

    def decode(self, photo: bytes) -> Pixels:
        """Return an encoded image's pixels, by Topwork's decoder for all servers."""
        return preprocess(photo, self._spec)

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the embedding (1, D) of one image."""
        result: list[NDArray[np.float32]] = self._backbone.run(
            ["embedding"], {self._input: pixels[None]}
        )
        return result[0]

    def top5(self, photo: bytes) -> list[list[float]]:
        """Return [class index, probability] of the five most probable classes, best first."""
        embedding = self.embed(self.decode(photo))
        result = self._head.run(["probabilities"], {self._embedding: embedding})
        probabilities: list[float] = result[0][0].tolist()
        best = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:5]
        return [[index, probabilities[index]] for index in best]

    def answer(self, photo: bytes) -> bytes:
        """Return ``top5`` as JSON, the response of a peer."""
        return json.dumps(self.top5(photo), separators=(",", ":")).encode()


def _open(path: Path, threads: int | None, spin: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
