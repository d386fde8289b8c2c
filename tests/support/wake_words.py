"""Encoder of spoken words from the package openwakeword, as one ONNX graph of waveforms.

Its two graphs are Google's speech embedding: mel spectrogram and a convolutional network (96 values
for 0.76 s). Between them the package scales the spectrum in Python; here it is in the graph. For
tests only: the package's models are not for commercial use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from topwork.runtime.backend import open_session

RATE = 16_000
WINDOW = RATE
"""Samples of a window: 97 spectra."""

FOLDER = Path(__file__).parents[2] / ".openwakeword" / "openwakeword" / "resources" / "models"
"""The package's models, where `make wake-words` puts them."""

_FRAMES = 76
_OFFSETS = (0, 8, 16)
"""First spectra of what the network takes; a spectrum is 10 ms."""


def waveform_model(folder: Path = FOLDER) -> onnx.ModelProto:
    """Return the graph from ``input_values`` (N, WINDOW) to ``last_hidden_state`` (N, 3, 96).

    ``folder`` is ``openwakeword/resources/models`` of the installed package, version 0.4.0.
    """
    mel = compose.add_prefix(onnx.load(folder / "melspectrogram.onnx"), "mel/")
    network = compose.add_prefix(onnx.load(folder / "embedding_model.onnx"), "net/")
    make = helper.make_node
    constants = {
        "full_scale": np.array(32_767, np.float32),
        "ten": np.array(10, np.float32),
        "two": np.array(2, np.float32),
        "rows": np.concatenate([np.arange(at, at + _FRAMES) for at in _OFFSETS]),
        "pieces": np.array([-1, _FRAMES, 32, 1]),
        "parts": np.array([-1, len(_OFFSETS), 96]),
    }
    nodes = [
        make("Mul", ["input_values", "full_scale"], [mel.graph.input[0].name]),
        *mel.graph.node,
        make("Div", [mel.graph.output[0].name, "ten"], ["tenth"]),
        make("Add", ["tenth", "two"], ["scaled"]),  # (N, 1, 97, 32)
        make("Gather", ["scaled", "rows"], ["gathered"], axis=2),
        make("Reshape", ["gathered", "pieces"], [network.graph.input[0].name]),
        *network.graph.node,
        make("Reshape", [network.graph.output[0].name, "parts"], ["last_hidden_state"]),
    ]
    graph = helper.make_graph(
        nodes,
        "spoken words",
        [helper.make_tensor_value_info("input_values", TensorProto.FLOAT, ["N", WINDOW])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None)],
        [
            *mel.graph.initializer,
            *network.graph.initializer,
            *(numpy_helper.from_array(value, name) for name, value in constants.items()),
        ],
    )
    opset = helper.make_opsetid("", mel.opset_import[0].version)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def reference(window: NDArray[np.float32], folder: Path = FOLDER) -> NDArray[np.float32]:
    """Return the embeddings (3, 96) of a window (WINDOW,), as the package computes them."""
    mel = open_session((folder / "melspectrogram.onnx").read_bytes(), output="output")
    spectra = mel.run((window * 32_767)[None]).reshape(-1, 32) / 10 + 2
    network = open_session((folder / "embedding_model.onnx").read_bytes(), output="conv2d_19")
    pieces = np.stack([spectra[at : at + _FRAMES] for at in _OFFSETS])[..., None]
    return network.run(pieces.astype(np.float32)).reshape(-1, 96)
