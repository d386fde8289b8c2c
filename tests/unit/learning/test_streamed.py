"""Learning of sets that are too large for memory: exactness, agreement, bounded memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle import embedding_rows
from topwork.bundle.embedding_rows import MappedEmbeddings
from topwork.bundle.exemplars import Exemplars, make, merge, split
from topwork.bundle.features import make as make_normaliser
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.bundle.shards import Shard, open_shard, to_bytes
from topwork.errors import Corrupt, NotReady
from topwork.learning import gate, streamed
from topwork.learning.cross_validation import CrossValidation
from topwork.learning.families import FAMILIES
from topwork.learning.gate import Judgement
from topwork.learning.learn import Learned, learn
from topwork.learning.parallel import Threads
from topwork.learning.streamed import LargeSet

WIDTH, CLASSES = 24, 12
LIMIT = 40 * (WIDTH + CLASSES)
"""Numbers in memory: 40 rows with their scores."""


def exemplars(rows: int = 600, *, seed: int = 0, classes: int = CLASSES) -> Exemplars:
    """Return exemplars of classes that a head tells apart in most cases."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (classes, WIDTH))
    targets = np.concatenate([np.arange(classes).repeat(5), rng.integers(0, classes, rows)])
    values = np.abs(1 + centres[targets] + rng.normal(0, 0.8, (len(targets), WIDTH)))
    prints, digests = rng.integers(0, 256, (2, len(targets), 32), dtype=np.uint8)
    return make(values.astype(np.float32), digests, prints, [f"c{target:02}" for target in targets])


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sets of more than 40 rows too large for memory, and blocks small."""
    monkeypatch.setattr(embedding_rows, "MAX_NUMBERS", LIMIT)
    monkeypatch.setattr(streamed, "BLOCK_ROWS", 64)
    monkeypatch.setattr(streamed, "_PART_ROWS", 16)
    monkeypatch.setattr(streamed, "JUDGED_ROWS", 40)
    monkeypatch.setattr(streamed, "LEAST_SAMPLE", 10)
    monkeypatch.setattr(gate, "LEAST_SAMPLE", 10)
    monkeypatch.setattr(streamed, "SAMPLE_ROWS", 30)
    monkeypatch.setattr(streamed, "SAMPLE_ROWS_PER_LABEL", 2)


def stored(made: Exemplars, directory: Path, *, parts: int = 1) -> list[tuple[str, Shard]]:
    """Return the shards of exemplars on disk, ``parts`` of each label, the last label first."""
    found = []
    for label, shard in reversed(split(made)):
        for part in range(parts):
            content = to_bytes(shard.where(np.arange(len(shard)) % parts == part))
            path = directory / f"{label}-{part}-{parts}.npz"
            path.write_bytes(content)
            found.append((label, open_shard(path, hashlib.sha256(content).hexdigest())))
    return found


def same(first: Learned, second: Learned) -> bool:
    """Return True if two heads and their metrics are equal to the last bit."""
    return to_onnx(first.head) == to_onnx(second.head) and first.metrics == second.metrics


@pytest.mark.usefixtures("small_memory")
def test_large_set_gives_same_head_whatever_its_shards_and_threads(tmp_path: Path) -> None:
    """In memory or in shards, of one or several parts, with one thread or two: the same bytes."""
    made = exemplars()
    expected = learn(made, seed=3)
    assert isinstance(made.embedding_rows, np.ndarray)
    for parts, threads in ((1, 2), (3, 1)):
        mapped = merge(stored(made, tmp_path, parts=parts))
        assert isinstance(mapped.embedding_rows, MappedEmbeddings)
        assert same(learn(mapped, seed=3, threads=threads), expected)
    assert len(expected.judged.rows) == 40


@pytest.mark.usefixtures("small_memory")
def test_class_added_to_large_set_gives_head_of_joint_fit(tmp_path: Path) -> None:
    """The head after a class was added is that of all classes learnt at once."""
    made = exemplars()
    shards = stored(made, tmp_path)
    old, new = shards[3:], shards[:3]
    learn(merge(old), seed=0)
    assert same(learn(merge([*new, *old]), seed=0), learn(merge(shards), seed=0))


@pytest.mark.parametrize("kind", streamed.KINDS)
@pytest.mark.parametrize("normalisation", ["l2", "standardise", "none"])
@pytest.mark.usefixtures("small_memory")
def test_sums_give_heads_of_all_rows(kind: HeadKind, normalisation: Normalisation) -> None:
    """Each set of the cross-validation is solved from all rows as in memory."""
    made = exemplars()
    folds = np.where(np.arange(len(made)) % 11 == 0, -1, made.folds(0))
    large = LargeSet(embeddings=made.embeddings, targets=made.targets, classes=CLASSES, folds=folds)
    whole = CrossValidation(
        embeddings=made.embeddings, every_target=made.targets, classes=CLASSES, folds=folds
    )
    sample = replace(
        whole,
        embeddings=made.embeddings[large.sample],
        every_target=made.targets[large.sample],
        folds=folds[large.sample],
    )
    with Threads(2) as threads:
        normaliser = large.normaliser(normalisation, threads)
        family = large.families(normaliser, threads)[kind]
        ((solved, *_),) = [
            family.solve(sample.task(normaliser), sample.sets, family.strengths, final=True)
        ]
        everything = np.ones((1, len(sample.folds)), dtype=bool)
        ((last,), *_) = family.solve(
            sample.task(normaliser), everything, family.strengths, final=True
        )
    expected_normaliser = make_normaliser(normalisation, made.embeddings)
    np.testing.assert_allclose(normaliser.scale, expected_normaliser.scale, rtol=1e-5)
    task = whole.task(expected_normaliser)
    expected = FAMILIES[kind].solve(task, whole.sets, family.strengths, final=True)[0]
    ((expected_last,), *_) = FAMILIES[kind].solve(
        task, np.ones((1, len(folds)), dtype=bool), family.strengths, final=True
    )
    for found, wanted in zip([*solved, last], [*expected, expected_last], strict=True):
        np.testing.assert_allclose(found(task.features), wanted(task.features), atol=2e-4)


@pytest.mark.usefixtures("small_memory")
def test_left_out_classes_are_solved_from_all_other_rows() -> None:
    """A set without a group of classes and a fold has the rows of all others, and no other."""
    made = exemplars()
    folds = made.folds(0)
    large = LargeSet(embeddings=made.embeddings, targets=made.targets, classes=CLASSES, folds=folds)
    normaliser = make_normaliser("l2", made.embeddings)
    with Threads(1) as threads:
        family = large.families(normaliser, threads)["ridge"]

    def members(targets: NDArray[np.int64], own_folds: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray((targets % 10 != 1) & (own_folds != 2))

    task = CrossValidation(
        embeddings=made.embeddings, every_target=made.targets, classes=CLASSES, folds=folds
    ).task(normaliser)
    own = members(made.targets[large.sample], folds[large.sample])[None]
    (found,), _ = family.solve(task, own, (2.0, 8.0), final=True)
    every = members(made.targets, folds)[None]
    (wanted,), _ = FAMILIES["ridge"].solve(task, every, (2.0, 8.0), final=True)
    np.testing.assert_allclose(found(task.features), wanted(task.features), atol=2e-4)
    assert not found.weights[[1, 11]].any()


@pytest.mark.usefixtures("small_memory")
def test_large_set_is_judged_nearly_as_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and calibration are close to those that all rows in memory give."""
    made, recipe = exemplars(3_000), Recipe(head="ridge", normalisation="l2")
    monkeypatch.setattr(streamed, "JUDGED_ROWS", 2_500)
    monkeypatch.setattr(streamed, "SAMPLE_ROWS", 1_000)
    large = learn(made, seed=0, recipe=recipe)
    monkeypatch.setattr(embedding_rows, "MAX_NUMBERS", 2**28)
    small = learn(made, seed=0, recipe=recipe)
    assert large.metrics.images == 2_500
    assert small.metrics.images == len(made)
    assert abs(large.metrics.accuracy - small.metrics.accuracy) < 0.02
    assert large.head.temperature == pytest.approx(small.head.temperature, rel=0.1)
    assert large.metrics.unknown is not None
    assert small.metrics.unknown is not None
    assert abs(large.metrics.unknown.auroc - small.metrics.unknown.auroc) < 0.05
    fresh = exemplars(500, seed=7)
    first, second = (found.head.probabilities(fresh.embeddings) for found in (large, small))
    assert abs(first - second).max() < 0.1
    assert (first.argmax(axis=1) == second.argmax(axis=1)).mean() > 0.97


@pytest.mark.usefixtures("small_memory")
def test_gate_finds_judged_rows_of_large_set_again() -> None:
    """The judgement of the metrics has the rows that were evaluated, in their order."""
    made = exemplars()
    learned = learn(made, seed=0)
    judgement = Judgement.of(made, learned.metrics)
    rows = learned.judged.rows
    assert np.array_equal(judgement.digests, made.digests[rows])
    predicted = learned.judged.probabilities.argmax(axis=1)
    assert np.array_equal(judgement.right, predicted == made.targets[rows])


@pytest.mark.usefixtures("small_memory")
def test_large_set_refuses_heads_that_need_all_rows_in_memory() -> None:
    """A recipe with logistic regression is refused, with the numbers and the heads that are not."""
    with pytest.raises(NotReady, match=r"660 exemplars of 12 labels.*'logistic'.*ridge") as raised:
        learn(exemplars(), seed=0, recipe=Recipe(head="logistic"))
    assert raised.value.reason == "TOO_MANY_FOR_HEAD"


@pytest.mark.usefixtures("small_memory")
def test_large_set_names_first_broken_embedding() -> None:
    """An embedding that is not finite is found, wherever it is."""
    made = exemplars()
    made.embeddings[77, 3] = np.nan
    with pytest.raises(Corrupt, match="1 of 660 embeddings"):
        learn(made, seed=0)


@pytest.mark.usefixtures("small_memory")
def test_large_set_notes_its_limits() -> None:
    """The note has the numbers of learnt, chosen and judged images."""
    (note,) = learn(exemplars(), seed=0).notes
    assert "660 images of 12 labels" in note
    assert "30 images and judged on 40" in note


def test_mapped_embeddings_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged shards of a large set take no memory for their embeddings, only blocks do."""
    rng = np.random.default_rng(0)
    wide = rng.random((2_000, 512), dtype=np.float32)
    prints = rng.integers(0, 256, (2_000, 32), dtype=np.uint8)
    made = make(wide, prints, prints, ["a", "b"] * 1_000)
    shards = stored(made, tmp_path)
    monkeypatch.setattr(embedding_rows, "MAX_NUMBERS", 1_000)
    tracemalloc.start()
    merged = merge(shards)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < wide.nbytes / 4
    assert np.array_equal(merged.embeddings, made.embeddings)
    half = merged.where(np.arange(2_000) % 2 == 0)
    assert isinstance(half.embedding_rows, MappedEmbeddings)
    assert np.array_equal(half.embeddings, made.embeddings[::2])
