"""The story, spoken: four names of flowers in many voices, then the fifth.

It needs espeak-ng. `make wake-words` downloads a real encoder of spoken words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import servers, spoken, wake_words
from support.sounds import encoded, samples, waveform_model

from topwork import Client
from topwork.bundle.store import Repository
from topwork.inputs.audio import AudioSpec, prepare
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.sounds.encoder import AudioSource, import_audio

RATE = 16_000
TRAIN_VOICES = spoken.VOICES[::3]
TEST_VOICES = spoken.VOICES[1::6]
OLD, NEW = spoken.FLOWERS[:4], spoken.FLOWERS[4]

with_espeak = pytest.mark.skipif(not spoken.is_installed(), reason="espeak-ng is not installed")
with_wake_words = pytest.mark.skipif(not wake_words.FOLDER.is_dir(), reason="make wake-words")


def imported(model: onnx.ModelProto, folder: Path) -> ImportedBackbone:
    """Return the backbone ``words``."""
    onnx.save(model, folder / "model.onnx")
    return import_audio("words", AudioSource(file=folder / "model.onnx", audio_rate=RATE))


def accuracy(made: ImportedBackbone, folder: Path) -> float:
    """Return the share of words in other voices that are right, after the fifth was taught."""
    repository = Repository(folder / "repository")
    repository.add_backbone("words", repository.put_backbone(made.onnx, made.info).digest)
    train = {word: spoken.record(folder, word, TRAIN_VOICES) for word in spoken.FLOWERS}
    test = {word: spoken.record(folder / "test", word, TEST_VOICES) for word in spoken.FLOWERS}
    with servers.running(repository.root) as server, Client(server.address) as client:
        client.create_model("flowers", backbone="words")
        four = client.add_classes("flowers", {word: train[word] for word in OLD})
        *_, last = client.watch(four.name)
        assert list(last.result().revision.labels) == sorted(OLD)
        *_, last = client.watch(client.add_class("flowers", NEW, train[NEW]).name)
        assert NEW in last.result().revision.labels
        right = [
            result.predictions[0].label == word
            for word in spoken.FLOWERS
            for result in client.predict("flowers", test[word])
        ]
    return float(np.mean(right))


@with_espeak
def test_four_spoken_flowers_then_the_fifth(tmp_path: Path) -> None:
    """Words in other voices are recognised by statistics of log-mel spectra alone."""
    assert accuracy(imported(waveform_model(RATE, 96), tmp_path), tmp_path) > 0.75


@with_espeak
@with_wake_words
def test_a_real_encoder_knows_nearly_all_words(tmp_path: Path) -> None:
    """Google's speech embedding, from openwakeword."""
    assert accuracy(imported(wake_words.waveform_model(), tmp_path), tmp_path) > 0.95


@with_wake_words
def test_embeddings_are_those_of_the_package(tmp_path: Path) -> None:
    """The graph gives the mean of what the package computes in Python, window by window."""
    made = imported(wake_words.waveform_model(), tmp_path)
    spec = made.info.preprocess
    assert isinstance(spec, AudioSpec)
    assert (spec.window, made.info.width) == (wake_words.WINDOW, 96)
    windows = prepare(encoded(samples("bird", 1, seconds=3)), spec)
    assert len(windows) > 2
    found = open_session(made.onnx, output="embedding").run(windows[None])[0]
    expected = np.stack([wake_words.reference(window) for window in windows]).mean(axis=(0, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
