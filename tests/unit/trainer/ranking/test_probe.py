"""Probes of backbones: accuracy on the same photos and folds, and cost."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from support import tiny
from support.pictures import picture, pictures

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import NotFound
from topwork.inputs.image_source import ImageSource
from topwork.inputs.preprocess import PreprocessSpec
from topwork.learning.learn import Learned, learn
from topwork.storage.files import sha256
from topwork.training.backbone_session import UsedBackbone
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.ranking import probe
from topwork_trainer.ranking.probe import NEIGHBOURS, Prober, knn_accuracy, milliseconds, sample


def source(name: str, label: str, content: bytes = b"") -> ImageSource:
    return ImageSource(name=name, label=label, read=lambda: content)


def numbered(label: str, count: int) -> list[ImageSource]:
    return [source(f"{label}/{index}", label) for index in range(count)]


def test_sample_is_balanced() -> None:
    """The rest that small classes leave is spread evenly over the others; the order is kept."""
    sources = [*numbered("few", 7), *numbered("many", 500), *numbered("more", 900)]
    chosen = sample(sources, 107, seed=0)
    assert Counter(photo.label for photo in chosen) == {"few": 7, "many": 50, "more": 50}
    assert chosen == [photo for photo in sources if photo in chosen]


def test_sample_depends_on_names_and_seed() -> None:
    """The sample is deterministic, differs by seed, and a new photo changes at most one of it."""
    sources = [*numbered("a", 300), *numbered("b", 300)]
    chosen = sample(sources, 100, seed=0)
    assert sample(sources, 100, seed=0) == chosen
    assert sample(sources, 100, seed=1) != chosen
    for extra in range(300, 330):
        more = sample([*sources, source(f"a/{extra}", "a")], 100, seed=0)
        assert len({photo.name for photo in chosen} - {photo.name for photo in more}) <= 1


def test_sample_has_enough_photos_of_each_class() -> None:
    """Even a small sample has as many photos of each class as a fit needs; a large one has all."""
    sources = [photo for label in "abcdefgh" for photo in numbered(label, 20)]
    assert set(Counter(photo.label for photo in sample(sources, 8, seed=0)).values()) == {5}
    assert sample(sources, 1000, seed=0) == sources


def test_knn_ignores_neighbours_of_the_same_fold() -> None:
    """Only neighbours in other folds vote, and the length of embeddings does not matter."""
    axes = np.eye(4, dtype=np.float32)
    # Rows 0 to 5 are on one axis, rows 6 to 11 on another; in fold 0 the labels are swapped.
    embeddings = np.concatenate([axes[[0] * 6], axes[[1] * 6]])
    folds = np.tile(np.arange(3), 4)
    targets = np.repeat([0, 1], 6)
    swapped = np.where(folds == 0, 1 - targets, targets)
    assert knn_accuracy(embeddings, targets, folds) == 1
    assert knn_accuracy(embeddings, swapped, folds) == pytest.approx(8 / 12)
    assert knn_accuracy(embeddings * 100, targets, folds) == 1


def test_knn_agrees_with_scikit_learn() -> None:
    """The accuracy is that of scikit-learn's kNN with cosine distance, fold by fold."""
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 1500)  # more than a block; two classes, so that there are no ties
    embeddings = (rng.standard_normal((1500, 8)) + 0.7 * targets[:, None]).astype(np.float32)
    folds = rng.integers(0, 5, 1500)
    right = 0
    for fold in range(5):
        reference = KNeighborsClassifier(NEIGHBOURS, metric="cosine")
        reference.fit(embeddings[folds != fold], targets[folds != fold])
        right += np.sum(reference.predict(embeddings[folds == fold]) == targets[folds == fold])
    assert knn_accuracy(embeddings, targets, folds) == right / 1500


class SlowSession:
    """Session that takes 20 ms of CPU time for the first images and almost none for others."""

    def __init__(self, images: int) -> None:
        self.images = images

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return one zero per image."""
        self.images -= 1
        end = time.thread_time() + 0.02
        while self.images >= 0 and time.thread_time() < end:
            pass
        return np.zeros((len(batch), 1), dtype=np.float32)


def test_milliseconds_ignores_a_slow_run() -> None:
    """The cost of an image is that of its fastest run."""
    content = [picture("amber", 0)]
    assert milliseconds(SlowSession(1), tiny.SPEC, content) < 15
    assert milliseconds(SlowSession(3), tiny.SPEC, content) >= 20


def model_of(side: int) -> bytes:
    """Return the tiny backbone for another input side, with larger pooling patches."""
    graph = onnx.load_from_string(tiny.backbone_model())
    graph.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", side, side, 3])
    )
    pool = next(node for node in graph.graph.node if node.op_type == "AveragePool")
    for attribute in pool.attribute:
        del attribute.ints[:]
        attribute.ints.extend([side // 4] * 2)
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString(deterministic=True)


def prepare(repository: Repository, choice: BackboneChoice, _: Exports | None) -> BackboneInfo:
    """Stand in for ``prepare_backbone``: store the tiny backbone at the requested image size."""
    if choice.name.startswith("missing"):
        raise NotFound("no weights of missing", kind="weights", resource="missing")
    side = choice.image_size or 64
    model = model_of(side)
    info = replace(
        tiny.backbone_info(model),
        name=choice.name,
        digest=sha256(model),
        preprocess=PreprocessSpec(resize=side, crop=side),
    )
    return repository.put_backbone(model, info)


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempts:
    """Return attempts with two classes of 20 pictures and one damaged file each."""
    monkeypatch.setattr(probe, "prepare_backbone", prepare)
    return Attempts(
        repository=Repository(tmp_path),
        sources=[
            source(f"{label}/{index}", label, content)
            for label in ("amber", "blue")
            for index, content in enumerate([*pictures(label, 20), b"damaged"])
        ],
        recipe=tiny.LOGISTIC,
        seed=0,
        cores=2,
        cache=None,
        on_progress=lambda *_: None,
    )


def test_probe_measures_accuracy_and_cost(attempts: Attempts) -> None:
    """The row has accuracy, cost and size of a backbone; ``right`` has each used photo."""
    trial = Prober(attempts).probe(BackboneChoice(name="tiny"))
    row = trial.row
    assert (row.name, row.image_size, row.views, row.width) == ("tiny", 64, 1, 48)
    assert (row.error, row.chosen, row.licence) == ("", False, "Apache-2.0")
    assert row.accuracy == np.mean(list(trial.right.values())) > 0.9
    assert row.accuracy_low < row.accuracy <= row.accuracy_high
    assert row.knn_accuracy > 0.9
    assert 0.01 < row.milliseconds < 1000
    assert row.megabytes == pytest.approx(len(model_of(64)) / 1e6)
    used = {photo.name for photo in attempts.sources if not photo.name.endswith("/20")}
    assert trial.right.keys() == used


def test_all_backbones_have_the_folds_of_the_first(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every photo keeps its fold at another image size, where its digest is different."""
    judged: list[Exemplars] = []

    def recording_learn(
        exemplars: Exemplars, *, seed: int, recipe: Recipe, threads: int
    ) -> Learned:
        judged.append(exemplars)
        return learn(exemplars, seed=seed, recipe=recipe, threads=threads)

    monkeypatch.setattr(probe, "learn", recording_learn)
    prober = Prober(attempts)
    rows = [
        prober.probe(BackboneChoice(name="tiny", image_size=size)).row for size in (64, 32, 128)
    ]
    assert [row.image_size for row in rows] == [64, 32, 128]
    folds = [_folds_by_name(exemplars) for exemplars in judged]
    assert folds[0] == folds[1] == folds[2]
    assert len({exemplars.embeddings.tobytes() for exemplars in judged}) == 3
    alone = Prober(attempts)
    alone.probe(BackboneChoice(name="tiny", image_size=32))
    assert _folds_by_name(judged[3]) != folds[0]


def _folds_by_name(exemplars: Exemplars) -> dict[str, int]:
    return dict(zip(exemplars.names, exemplars.folds(0).tolist(), strict=True))


def test_embeddings_stay_with_their_photos(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted as for the first backbone, each photo still has its own embedding and label."""
    judged: list[Exemplars] = []

    def recording_learn(
        exemplars: Exemplars, *, seed: int, recipe: Recipe, threads: int
    ) -> Learned:
        judged.append(exemplars)
        return learn(exemplars, seed=seed, recipe=recipe, threads=threads)

    monkeypatch.setattr(probe, "learn", recording_learn)
    prober, alone = Prober(attempts), Prober(attempts)
    prober.probe(BackboneChoice(name="tiny"))
    prober.probe(BackboneChoice(name="tiny", image_size=32))
    alone.probe(BackboneChoice(name="tiny", image_size=32))
    _, second, own = judged
    assert second.names != own.names
    embedding_of = dict(zip(own.names, own.embeddings, strict=True))
    for row, name in enumerate(second.names):
        assert np.array_equal(second.embeddings[row], embedding_of[name])
        assert second.labels[second.targets[row]] == name.partition("/")[0]


def test_pools_are_judged_on_one_pass(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each embedding has its own accuracy and width, and the time of the shared graph."""
    embed, passes = Prober._embed, []

    def with_parts(self: Prober, choice: BackboneChoice, backbone: UsedBackbone) -> Exemplars:
        found = embed(self, choice, backbone)
        passes.append(choice.name)
        noise = np.random.default_rng(0).standard_normal(found.embeddings.shape)
        parts = (noise.astype(np.float32), 0 * found.embeddings, found.embeddings)
        return replace(found, embedding_rows=np.concatenate(parts, axis=1))

    monkeypatch.setattr(Prober, "_embed", with_parts)
    own, mean = Prober(attempts).probe_pools(BackboneChoice(name="tiny"))
    assert passes == ["tiny:parts"]
    assert (own.choice.name, mean.choice.name) == ("tiny", "tiny:mean")
    assert own.row.accuracy < 0.7 < mean.row.accuracy
    assert own.row.milliseconds == mean.row.milliseconds > 0
    assert {own.row.width, mean.row.width} == {tiny.WIDTH}
    (failed,) = Prober(attempts).probe_pools(BackboneChoice(name="missing"))
    assert (failed.choice.name, failed.row.error) == ("missing:auto", "no weights of missing")


def test_backbone_without_weights_has_a_row_with_the_error(attempts: Attempts) -> None:
    """The row has the error, and its numbers are 0."""
    trial = Prober(attempts).probe(BackboneChoice(name="missing", image_size=96, views=2))
    assert trial.row.error == "no weights of missing"
    assert (trial.row.image_size, trial.row.views, trial.row.accuracy) == (96, 2, 0)
    assert not trial.right


def test_photos_of_a_single_class_are_an_error(attempts: Attempts) -> None:
    """If only one class has usable photos the row has the error."""
    sources = [*attempts.sources[:20], *(source(f"blue/{i}", "blue", b"bad") for i in range(9))]
    trial = Prober(replace(attempts, sources=sources)).probe(BackboneChoice(name="tiny"))
    assert "20 of 29 photos are usable" in trial.row.error


def test_progress_has_the_name_of_the_backbone(attempts: Attempts) -> None:
    """Progress counts every photo in a stage named after the backbone."""
    steps: list[tuple[str, int, int]] = []
    attempts = replace(attempts, on_progress=lambda *step: steps.append(step))
    Prober(attempts).probe(BackboneChoice(name="tiny", image_size=32, views=2))
    assert steps == [("try tiny@32x2", done, 42) for done in range(43)]
