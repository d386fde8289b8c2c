"""Backbones are compared on the same photos in the same folds, and by what they cost."""

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
from topwork.bundle.files import sha256
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import NotFound
from topwork.inputs.preprocess import PreprocessSpec
from topwork.learning.learn import Learned, learn
from topwork.training.embed import ImageSource
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
    """What small classes leave goes to the others, in equal parts and in the order given."""
    sources = [*numbered("few", 7), *numbered("many", 500), *numbered("more", 900)]
    chosen = sample(sources, 107, seed=0)
    assert Counter(one.label for one in chosen) == {"few": 7, "many": 50, "more": 50}
    assert chosen == [one for one in sources if one in chosen]


def test_sample_follows_from_names_and_seed() -> None:
    """The same photos give the same sample, another seed another, a photo more a change of one."""
    sources = [*numbered("a", 300), *numbered("b", 300)]
    chosen = sample(sources, 100, seed=0)
    assert sample(sources, 100, seed=0) == chosen
    assert sample(sources, 100, seed=1) != chosen
    for extra in range(300, 330):
        more = sample([*sources, source(f"a/{extra}", "a")], 100, seed=0)
        assert len({one.name for one in chosen} - {one.name for one in more}) <= 1


def test_sample_leaves_enough_of_each_class() -> None:
    """However small the sample, each class has what a fit needs; a large one is everything."""
    sources = [one for label in "abcdefgh" for one in numbered(label, 20)]
    assert set(Counter(one.label for one in sample(sources, 8, seed=0)).values()) == {5}
    assert sample(sources, 1000, seed=0) == sources


def test_neighbours_of_the_own_fold_do_not_vote() -> None:
    """Twins in one fold call each other right by nobody's count; others in other folds do."""
    axes = np.eye(4, dtype=np.float32)
    # Rows 0 to 5 lie on one axis, rows 6 to 11 on another; but in fold 0 axes are swapped.
    embeddings = np.concatenate([axes[[0] * 6], axes[[1] * 6]])
    folds = np.tile(np.arange(3), 4)
    targets = np.repeat([0, 1], 6)
    swapped = np.where(folds == 0, 1 - targets, targets)
    assert knn_accuracy(embeddings, targets, folds) == 1
    assert knn_accuracy(embeddings, swapped, folds) == pytest.approx(8 / 12)
    assert knn_accuracy(embeddings * 100, targets, folds) == 1


def test_neighbours_agree_with_scikit_learn() -> None:
    """Fold by fold it is scikit-learn's classifier with cosine distance."""
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 1500)  # more than a block; two classes, so that no vote is equal
    embeddings = (rng.standard_normal((1500, 8)) + 0.7 * targets[:, None]).astype(np.float32)
    folds = rng.integers(0, 5, 1500)
    right = 0
    for fold in range(5):
        known = KNeighborsClassifier(NEIGHBOURS, metric="cosine")
        known.fit(embeddings[folds != fold], targets[folds != fold])
        right += np.sum(known.predict(embeddings[folds == fold]) == targets[folds == fold])
    assert knn_accuracy(embeddings, targets, folds) == right / 1500


class Slow:
    """A backbone that takes 20 ms of CPU for the first images, and next to none for others."""

    def __init__(self, images: int) -> None:
        self.images = images

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return one zero an image."""
        self.images -= 1
        end = time.thread_time() + 0.02
        while self.images >= 0 and time.thread_time() < end:
            pass
        return np.zeros((len(batch), 1), dtype=np.float32)


def test_one_disturbed_run_does_not_count() -> None:
    """The cost of an image is that of its best run."""
    content = [picture("amber", 0)]
    assert milliseconds(Slow(1), tiny.SPEC, content) < 15  # type: ignore[arg-type] # all that is used of a session
    assert milliseconds(Slow(3), tiny.SPEC, content) >= 20  # type: ignore[arg-type] # as above


def model_of(side: int) -> bytes:
    """Return the tiny backbone for another input side: as many means, of larger patches."""
    made = onnx.load_from_string(tiny.backbone_model())
    made.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", side, side, 3])
    )
    pool = next(node for node in made.graph.node if node.op_type == "AveragePool")
    for attribute in pool.attribute:
        del attribute.ints[:]
        attribute.ints.extend([side // 4] * 2)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


def prepare(repository: Repository, choice: BackboneChoice, _: Exports | None) -> BackboneInfo:
    """Stand in for ``prepare_backbone``: the tiny backbone at the image size that is asked for."""
    if choice.name == "missing":
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
    """Return two classes of 20 pictures, of each one that is damaged, and tiny backbones."""
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


def test_row_says_what_was_measured(attempts: Attempts) -> None:
    """Accuracy, cost and size of a backbone that worked, and which photos were called right."""
    tried = Prober(attempts).tried(BackboneChoice(name="tiny"))
    row = tried.row
    assert (row.name, row.image_size, row.views, row.width) == ("tiny", 64, 1, 48)
    assert (row.error, row.chosen, row.licence) == ("", False, "Apache-2.0")
    assert row.accuracy == np.mean(list(tried.right.values())) > 0.9
    assert row.accuracy_low < row.accuracy <= row.accuracy_high
    assert row.knn_accuracy > 0.9
    assert 0.01 < row.milliseconds < 1000
    assert row.megabytes == pytest.approx(len(model_of(64)) / 1e6)
    used = {one.name for one in attempts.sources if not one.name.endswith("/20")}
    assert tried.right.keys() == used


def test_folds_are_those_of_the_first_backbone(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At another image size, where pixels have other digests, every photo keeps its fold."""
    judged: list[Exemplars] = []

    def noted(exemplars: Exemplars, *, seed: int, recipe: Recipe, threads: int) -> Learned:
        judged.append(exemplars)
        return learn(exemplars, seed=seed, recipe=recipe, threads=threads)

    monkeypatch.setattr(probe, "learn", noted)
    prober = Prober(attempts)
    rows = [
        prober.tried(BackboneChoice(name="tiny", image_size=size)).row for size in (64, 32, 128)
    ]
    assert [row.image_size for row in rows] == [64, 32, 128]
    folds = [dict(zip(one.names, one.folds(0).tolist(), strict=True)) for one in judged]
    assert folds[0] == folds[1] == folds[2]
    assert len({one.embeddings.tobytes() for one in judged}) == 3
    alone = Prober(attempts)
    alone.tried(BackboneChoice(name="tiny", image_size=32))
    assert dict(zip(judged[3].names, judged[3].folds(0).tolist(), strict=True)) != folds[0]


def test_embeddings_stay_with_their_photos(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put into the first one's order, each photo has its own embedding and label."""
    judged: list[Exemplars] = []

    def noted(exemplars: Exemplars, *, seed: int, recipe: Recipe, threads: int) -> Learned:
        judged.append(exemplars)
        return learn(exemplars, seed=seed, recipe=recipe, threads=threads)

    monkeypatch.setattr(probe, "learn", noted)
    prober, alone = Prober(attempts), Prober(attempts)
    prober.tried(BackboneChoice(name="tiny"))
    prober.tried(BackboneChoice(name="tiny", image_size=32))
    alone.tried(BackboneChoice(name="tiny", image_size=32))
    _, second, own = judged
    assert second.names != own.names
    embedding_of = dict(zip(own.names, own.embeddings, strict=True))
    for row, name in enumerate(second.names):
        assert np.array_equal(second.embeddings[row], embedding_of[name])
        assert second.labels[second.targets[row]] == name.partition("/")[0]


def test_backbone_that_cannot_be_had_is_a_row(attempts: Attempts) -> None:
    """What stands in the way is in the row, and numbers are 0."""
    tried = Prober(attempts).tried(BackboneChoice(name="missing", image_size=96, views=2))
    assert tried.row.error == "no weights of missing"
    assert (tried.row.image_size, tried.row.views, tried.row.accuracy) == (96, 2, 0)
    assert not tried.right


def test_photos_of_one_class_are_not_enough(attempts: Attempts) -> None:
    """Where all photos of a class are damaged the row says that."""
    sources = [*attempts.sources[:20], *(source(f"blue/{i}", "blue", b"bad") for i in range(9))]
    tried = Prober(replace(attempts, sources=sources)).tried(BackboneChoice(name="tiny"))
    assert "20 of 29 photos are usable" in tried.row.error


def test_progress_is_told_by_backbone(attempts: Attempts) -> None:
    """Every photo counts, under the name of the backbone that is tried."""
    told: list[tuple[str, int, int]] = []
    attempts = replace(attempts, on_progress=lambda *step: told.append(step))
    Prober(attempts).tried(BackboneChoice(name="tiny", image_size=32, views=2))
    assert told == [("try tiny@32x2", done, 42) for done in range(43)]
