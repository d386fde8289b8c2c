"""Accuracy of spoken words: four flowers, then the fifth by AddClass on a live server.

``PYTHONPATH=tests python -m benchmarks.spoken_flowers [--openwakeword FOLDER]``, with espeak-ng.
Words of two thirds of the voices are taught, those of the others classified. The reference is
scikit-learn's logistic regression on the same embeddings, with C and the scaling (standardised, of
length 1, or none) by cross-validation over voices.
Encoders: log-mel statistics without learnt weights, and, if the folder
``openwakeword/resources/models`` of openwakeword 0.4.0 is given, Google's speech embedding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from support import servers, spoken, wake_words
from support.sounds import waveform_model

from topwork import Client
from topwork.bundle.metrics import wilson_interval
from topwork.bundle.store import Repository
from topwork.inputs.audio import SentAudio
from topwork.inputs.kinds import array_of
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.sounds.encoder import AudioSource, import_audio

RATE = 16_000
OLD, NEW = spoken.FLOWERS[:4], spoken.FLOWERS[4]
TEST_VOICES = spoken.VOICES[::3]
TRAIN_VOICES = tuple(voice for voice in spoken.VOICES if voice not in TEST_VOICES)

Files = Mapping[str, Sequence[Path]]
"""Recordings by word."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers of a number of recordings."""

    right: int
    count: int

    def __str__(self) -> str:
        """Return the share in percent, with its 95 % interval."""
        low, high = wilson_interval(self.right, self.count)
        share = 100 * self.right / self.count
        return f"{share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def add_encoder(repository: Repository, name: str, model: onnx.ModelProto, folder: Path) -> None:
    """Import an encoder as the backbone ``name``."""
    file = folder / f"{name}.onnx"
    onnx.save(model, file)
    made = import_audio(name, AudioSource(file=file, audio_rate=RATE, hop=0.5, max_seconds=10))
    info = repository.put_backbone(made.onnx, made.info)
    repository.add_backbone(name, info.digest)
    print(f"{name}: {info.width} values, {made.milliseconds:.1f} ms a window of 1 s")


def story(
    client: Client, model: str, train: Files, test: Files
) -> tuple[Accuracy, Accuracy, float]:
    """Teach four words, then the fifth; return both accuracies and the seconds of AddClass."""
    client.create_model(model, backbone=model)
    *_, last = client.watch(client.add_classes(model, {word: train[word] for word in OLD}).name)
    assert last.result().revision.revision == 1
    four = classify(client, model, {word: test[word] for word in OLD})
    start = time.perf_counter()
    *_, last = client.watch(client.add_class(model, NEW, train[NEW]).name)
    seconds = time.perf_counter() - start
    assert NEW in last.result().revision.labels
    return four, classify(client, model, test), seconds


def classify(client: Client, model: str, test: Files) -> Accuracy:
    """Return the accuracy on all recordings."""
    right = [
        result.predictions[0].label == word
        for word, files in test.items()
        for result in client.predict(model, files)
    ]
    return Accuracy(sum(right), len(right))


def reference(repository: Repository, name: str, train: Files, test: Files) -> Accuracy:
    """Return the accuracy of scikit-learn's logistic regression on the same embeddings."""
    info = repository.backbone_info(repository.added_backbones()[name])
    session = open_session(repository.backbone_model(info.digest), output="embedding")

    def embed(files: Files) -> tuple[NDArray[np.float32], list[str], list[str]]:
        paths = [(word, path) for word, own in files.items() for path in own]
        rows = [
            session.run(array_of(SentAudio(path.read_bytes()), info.preprocess, model=name)[None])[
                0
            ]
            for _, path in paths
        ]
        voices = [path.stem.rpartition("-")[0] for _, path in paths]
        return np.stack(rows), [word for word, _ in paths], voices

    rows, words, voices = embed(train)
    pipeline = Pipeline([("scale", StandardScaler()), ("head", LogisticRegression(max_iter=5_000))])
    choices = {
        "scale": [StandardScaler(), Normalizer(), "passthrough"],
        "head__C": np.logspace(-4, 3, 15),
    }
    grid = GridSearchCV(pipeline, choices, cv=GroupKFold(5)).fit(rows, words, groups=voices)
    test_rows, test_words, _ = embed(test)
    return Accuracy(int(np.sum(grid.predict(test_rows) == test_words)), len(test_words))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a line for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openwakeword", type=Path, help="folder of the package's models")
    given = parser.parse_args(arguments)
    encoders = {"log-mel": waveform_model(RATE, 96)}
    if given.openwakeword:
        encoders["speech"] = wake_words.waveform_model(given.openwakeword)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        train = {word: spoken.record(root / "train", word, TRAIN_VOICES) for word in spoken.FLOWERS}
        test = {word: spoken.record(root / "test", word, TEST_VOICES) for word in spoken.FLOWERS}
        print(
            f"{len(train[NEW])} recordings a word in {len(TRAIN_VOICES)} voices to learn, "
            f"{len(test[NEW])} in {len(TEST_VOICES)} other voices to classify"
        )
        repository = Repository(root / "repository")
        for name, model in encoders.items():
            add_encoder(repository, name, model, root)
        with servers.running(repository.root) as server, Client(server.address) as client:
            for name in encoders:
                four, five, seconds = story(client, name, train, test)
                print(
                    f"{name}: four words {four}; five {five}, AddClass {seconds:.1f} s; "
                    f"scikit-learn on all five {reference(repository, name, train, test)}"
                )


if __name__ == "__main__":
    main()
