"""Made-up recordings, and a small encoder: statistics of log-mel spectra, projected at random.

The encoder has no learnt weights. Its graph computes what speech recognition has used for decades:
a short-time Fourier transform by a matrix product, mel bands, their logarithm, and mean and
deviation over time.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import soundfile
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support import tiny
from topwork.arrays import Float32Array
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.store import Repository
from topwork.inputs.audio import AudioSpec
from topwork.inputs.image_source import ImageSource
from topwork.runtime.agreement import expect
from topwork.runtime.backend import open_session
from topwork.training.embed import embed

RATE = 8_000
WIDTH = 32
SPEC = AudioSpec(rate=RATE, window=RATE // 2, hop=RATE // 4, max_seconds=10)
LABELS = ("bell", "bird", "chirp", "drum", "horn")

_FRAME, _STEP, _BANDS = 256, 128, 24


def samples(label: str, number: int, *, seconds: float = 0.6) -> Float32Array:
    """Return a made-up sound (T,) at RATE Hz: a few tones of the label, with its own envelope."""
    common = np.random.default_rng(zlib.crc32(label.encode()))
    tones = common.uniform(200, 3_000, 3)
    glide, decay = common.uniform(-500, 500), common.uniform(1, 8)
    own = np.random.default_rng([zlib.crc32(label.encode()), number])
    tones = tones * own.uniform(0.9, 1.1) + own.normal(0, 20, 3)
    seconds = seconds * own.uniform(0.7, 1.5)
    time = np.arange(round(seconds * RATE)) / RATE
    sound = sum(
        own.uniform(0.5, 1) * np.sin(2 * np.pi * (tone + glide * time) * time) for tone in tones
    )
    sound = sound * np.exp(-decay * own.uniform(0.8, 1.2) * time) + own.normal(0, 0.02, len(time))
    return np.asarray(own.uniform(0.1, 0.3) * sound, dtype=np.float32)


def encoded(
    sound: NDArray[Any],
    *,
    rate: int = RATE,
    kind: str = "WAV",
    subtype: str | None = None,
) -> bytes:
    """Return a file of samples (T,) or (T, channels)."""
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


def recordings(label: str, count: int, *, first: int = 0) -> list[bytes]:
    """Return WAV files of a label: those numbered ``first`` and later."""
    return [encoded(samples(label, number)) for number in range(first, first + count)]


def waveform_model(rate: int = RATE, width: int = WIDTH) -> onnx.ModelProto:
    """Return an ONNX graph from a waveform ``input_values`` (N, L) to ``embeddings`` (N, width)."""
    phase = 2 * np.pi * np.outer(np.arange(_FRAME), np.arange(_FRAME // 2 + 1)) / _FRAME
    window = np.hanning(_FRAME)[:, None]
    bins = _FRAME // 2 + 1
    basis = np.concatenate([window * np.cos(phase), window * np.sin(phase)], axis=1)
    project = np.random.default_rng(5).normal(size=(2 * _BANDS, width)) / np.sqrt(2 * _BANDS)
    constants = {
        # As a convolution: (2 * bins, 1, frame) filters, one step a frame.
        "basis": basis.T[:, None].astype(np.float32),
        "mel": _mel(rate, bins).astype(np.float32),
        "project": project.astype(np.float32),
        "floor": np.array(1e-6, dtype=np.float32),
        "channel": np.array([1]),
        "halves": np.array([bins, bins]),
    }
    make = helper.make_node
    nodes = [
        make("Unsqueeze", ["input_values", "channel"], ["wave"]),
        make("Conv", ["wave", "basis"], ["parts"], strides=[_STEP]),  # (N, 2 * bins, T)
        make("Split", ["parts", "halves"], ["real", "imaginary"], axis=1),
        make("Mul", ["real", "real"], ["real_2"]),
        make("Mul", ["imaginary", "imaginary"], ["imaginary_2"]),
        make("Add", ["real_2", "imaginary_2"], ["power"]),
        make("MatMul", ["mel", "power"], ["bands"]),  # (N, bands, T)
        make("Add", ["bands", "floor"], ["positive"]),
        make("Log", ["positive"], ["levels"]),
        make("ReduceMean", ["levels"], ["mean"], axes=[2], keepdims=1),
        make("Sub", ["levels", "mean"], ["centred"]),
        make("Mul", ["centred", "centred"], ["squares"]),
        make("ReduceMean", ["squares"], ["variance"], axes=[2], keepdims=1),
        make("Sqrt", ["variance"], ["deviation"]),
        make("Concat", ["mean", "deviation"], ["statistics"], axis=1),
        make("Flatten", ["statistics"], ["flat"], axis=1),
        make("MatMul", ["flat", "project"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "log-mel",
        [helper.make_tensor_value_info("input_values", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def encoder_model() -> bytes:
    """Return the graph from ``windows`` float32 (N, W, L), N = 1, to ``embedding`` (N, WIDTH)."""
    model = waveform_model()
    graph = model.graph
    make = helper.make_node
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["N", "W", "L"])
    )
    graph.node.insert(0, make("Squeeze", ["windows", "first"], ["input_values"]))
    graph.node.append(make("ReduceMean", ["embeddings"], ["embedding"], axes=[0], keepdims=1))
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    graph.output[0].CopyFrom(
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])
    )
    return model.SerializeToString(deterministic=True)


def backbone_info(model: bytes, spec: AudioSpec = SPEC) -> BackboneInfo:
    """Return the description of the encoder."""
    return replace(
        tiny.backbone_info(model),
        name="log-mel",
        identity="log-mel:1",
        preprocess=spec,
        width=WIDTH,
        expected=expect(open_session(model, output="embedding").run, spec),
    )


def exemplars(given: Mapping[str, Sequence[bytes]]) -> Exemplars:
    """Return the exemplars of recordings by label."""
    sources = [
        ImageSource(name=f"{label}-{number}", label=label, read=lambda file=file: file)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        for label, own in given.items()
        for number, file in enumerate(own)
    ]
    session = open_session(encoder_model(), output="embedding")
    made, skipped = embed(sources, session, SPEC, cores=2)
    assert made is not None
    assert not skipped
    return made


def publish(repository: Repository, model: str, made: Exemplars) -> Manifest:
    """Publish a revision fitted on ``made``, and let it serve."""
    graph = encoder_model()
    return tiny.publish(repository, model, made, backbone=graph, info=backbone_info(graph))


@tiny.copied
def repository(root: Path) -> Repository:
    """Return a new repository with a model ``sounds`` fitted on 15 recordings of four labels."""
    made = Repository(root)
    publish(made, "sounds", exemplars({label: recordings(label, 15) for label in LABELS[:4]}))
    return made


def _mel(rate: int, bins: int) -> NDArray[np.float64]:
    """Return triangular filters (_BANDS, bins), equal steps apart on the mel scale."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1)
    places = np.linspace(0, rate / 2, bins)
    rise = (places - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - places) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))
