"""The story, spoken: four names of flowers in many voices, then the fifth. Needs espeak-ng."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support import servers, spoken
from support.sounds import waveform_model

from topwork import Client
from topwork.bundle.store import Repository
from topwork_trainer.backbones.sounds.encoder import AudioSource, import_audio

pytestmark = pytest.mark.skipif(not spoken.is_installed(), reason="espeak-ng is not installed")

TRAIN_VOICES = spoken.VOICES[::3]
TEST_VOICES = spoken.VOICES[1::6]
OLD, NEW = spoken.FLOWERS[:4], spoken.FLOWERS[4]


def test_four_spoken_flowers_then_the_fifth(tmp_path: Path) -> None:
    """Words in other voices are recognised by statistics of log-mel spectra alone."""
    onnx.save(waveform_model(16_000, 96), tmp_path / "model.onnx")
    made = import_audio("words", AudioSource(file=tmp_path / "model.onnx", audio_rate=16_000))
    repository = Repository(tmp_path / "repository")
    repository.add_backbone("words", repository.put_backbone(made.onnx, made.info).digest)
    train = {word: spoken.record(tmp_path, word, TRAIN_VOICES) for word in spoken.FLOWERS}
    test = {word: spoken.record(tmp_path / "test", word, TEST_VOICES) for word in spoken.FLOWERS}
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
        assert np.mean(right) > 0.75
