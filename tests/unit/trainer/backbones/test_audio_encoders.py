"""Import of encoders of audio from ONNX files: the completed graph, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from support import sounds
from support.sounds import RATE, WIDTH, waveform_model

from topwork.errors import InvalidInput
from topwork.inputs.audio import AudioSpec, prepare
from topwork.runtime.agreement import measure
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.sounds.encoder import AudioSource, import_audio
from topwork_trainer.backbones.sounds.wrap import scaled
from topwork_trainer.kinds import size_text, sizes_json

RECORDING = sounds.encoded(sounds.samples("bird", 0, seconds=1.5))
Import = Callable[..., ImportedBackbone]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Return a function that saves a graph and imports it."""

    def run(model: onnx.ModelProto, **options: Any) -> ImportedBackbone:
        onnx.save(model, tmp_path / "model.onnx")
        options = {"audio_rate": RATE, "window": 0.5, "hop": 0.25, "max_seconds": 10, **options}
        return import_audio("mine", AudioSource(file=tmp_path / "model.onnx", **options))

    return run


def frames_model(
    *, element: int = TensorProto.FLOAT, mask: int | None = None, length: str | int = "samples"
) -> onnx.ModelProto:
    """Return an encoder like wav2vec2: ``input_values`` (N, L) to ``last_hidden_state`` (N, T, D).

    A mask is multiplied with the waveform.
    """
    make = helper.make_node
    filters = np.random.default_rng(1).normal(size=(WIDTH, 1, 64)).astype(np.float32)
    wave = "input_values"
    nodes = []
    inputs = [helper.make_tensor_value_info(wave, element, ["batch", length])]
    if element != TensorProto.FLOAT:
        nodes.append(make("Cast", [wave], ["float"], to=TensorProto.FLOAT))
        wave = "float"
    if mask is not None:
        inputs.append(helper.make_tensor_value_info("attention_mask", mask, ["batch", length]))
        nodes += [
            make("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
            make("Mul", [wave, "weights"], ["masked"]),
        ]
        wave = "masked"
    nodes += [
        make("Unsqueeze", [wave, "one"], ["channels"]),
        make("Conv", ["channels", "filters"], ["filtered"], strides=[32]),
        make("Relu", ["filtered"], ["positive"]),
        make("Transpose", ["positive"], ["last_hidden_state"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "frames",
        inputs,
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(filters, "filters"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def embed(backbone: ImportedBackbone) -> NDArray[np.float32]:
    """Return the embedding (D,) of the recording."""
    session = open_session(backbone.onnx, output="embedding")
    return np.asarray(session.run(windows(backbone)[None])[0])


def windows(backbone: ImportedBackbone) -> NDArray[np.float32]:
    """Return the windows (W, L) of the recording; there are several."""
    spec = backbone.info.preprocess
    assert isinstance(spec, AudioSpec)
    found = prepare(RECORDING, spec)
    assert len(found) > 2
    return found


@pytest.mark.parametrize("normalise", [False, True])
def test_the_embedding_is_the_mean_of_those_of_the_windows(
    imported: Import, normalise: bool
) -> None:
    """With each window scaled in the graph, if that is asked for."""
    backbone = imported(waveform_model(), audio_normalise=normalise)
    given = windows(backbone)
    encoder = open_session(waveform_model().SerializeToString(), output="embeddings")
    expected = encoder.run(scaled(given) if normalise else given).mean(axis=0)
    np.testing.assert_allclose(embed(backbone), expected, rtol=1e-4, atol=1e-4)
    assert backbone.info.preprocess == AudioSpec(
        rate=RATE, window=RATE // 2, hop=RATE // 4, max_seconds=10
    )
    assert (backbone.info.width, backbone.info.precision) == (WIDTH, "fp32")
    assert measure(backbone.info, open_session(backbone.onnx, output="embedding").run) == 1.0
    (value,) = onnx.load_from_string(backbone.onnx).graph.input
    assert value.name == "windows"


@pytest.mark.parametrize(
    ("element", "mask"),
    [
        (TensorProto.FLOAT, None),
        (TensorProto.FLOAT, TensorProto.INT64),
        (TensorProto.FLOAT, TensorProto.INT32),
        (TensorProto.FLOAT, TensorProto.BOOL),
        (TensorProto.FLOAT16, None),
    ],
)
def test_rows_of_a_transformer_are_pooled_over_time(
    imported: Import, element: int, mask: int | None
) -> None:
    """The mask, which is all 1, is computed in the graph."""
    backbone = imported(frames_model(element=element, mask=mask))
    kind = helper.tensor_dtype_to_np_dtype(element)
    given = windows(backbone).astype(kind).astype(np.float32)
    encoder = open_session(frames_model().SerializeToString(), output="last_hidden_state")
    expected = encoder.run(given).mean(axis=(0, 1))
    np.testing.assert_allclose(embed(backbone), expected, rtol=1e-4, atol=1e-5)
    assert ("attention_mask all 1" in backbone.notes[0]) == (mask is not None)
    assert "mean over time and windows" in backbone.notes[2]


def test_two_recordings_of_as_many_windows_are_two_rows(imported: Import) -> None:
    """The graph pools within each."""
    backbone = imported(waveform_model())
    session = open_session(backbone.onnx, output="embedding")
    one = windows(backbone)
    both = np.stack([one, one[::-1] * 0.5])
    alone = [session.run(each[None])[0] for each in both]
    np.testing.assert_allclose(session.run(both), np.stack(alone), rtol=1e-4, atol=1e-4)


def test_a_fixed_length_is_the_window(imported: Import) -> None:
    """Another window is refused."""
    backbone = imported(frames_model(length=2_000), window=None, hop=None)
    spec = backbone.info.preprocess
    assert isinstance(spec, AudioSpec)
    assert (spec.window, spec.hop) == (2_000, 2_000)
    with pytest.raises(InvalidInput, match="takes 2000 samples, not 4000") as caught:
        imported(frames_model(length=2_000))
    assert caught.value.field == "window"


def test_words_about_sizes() -> None:
    """The rate stands for the size."""
    assert size_text(sounds.SPEC) == "8000 Hz"
    assert sizes_json(sounds.SPEC)["audio_rate"] == 8000


def changed(**parts: Any) -> onnx.ModelProto:
    """Return the encoder with another input."""
    model = waveform_model()
    name, kind = parts.get("name", "input_values"), parts.get("kind", TensorProto.FLOAT)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info(name, kind, parts["dims"]))
    return model


def constant() -> onnx.ModelProto:
    """Return an encoder whose output does not depend on the waveform."""
    model = waveform_model()
    for tensor in model.graph.initializer:
        if tensor.name == "project":
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, "project"))
    return model


@pytest.mark.parametrize(
    ("model", "options", "fault"),
    [
        (changed(dims=[1, "L"]), {}, "a fixed batch size of 1"),
        (changed(dims=["N", 1, "L"]), {}, "has 3 dimensions; a waveform has two"),
        (changed(dims=["N", "L"], kind=TensorProto.INT64), {}, "is int64; a waveform is float"),
        (constant(), {}, "is the same for all recordings"),
        (waveform_model(), {"output": "missing"}, "it has no tensor 'missing'"),
        (waveform_model(), {"window": 0.01, "hop": 0.01}, "cannot run it with a window"),
        (waveform_model(), {"hop": 0.6}, "hop 4800 must be between 1 and the window, 4000"),
        (waveform_model(), {"hop": 0.0001, "max_seconds": 600}, "lower max_seconds"),
    ],
)
def test_unusable_files_are_refused(
    imported: Import, model: onnx.ModelProto, options: dict[str, Any], fault: str
) -> None:
    """The error says what is wrong."""
    with pytest.raises(InvalidInput, match=fault):
        imported(model, **options)
