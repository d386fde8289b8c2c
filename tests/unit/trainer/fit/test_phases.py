"""Phases of a fit: a fine-tuned backbone is judged only on photos that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import tiny
from support.pictures import pictures

from topwork.bundle.exemplars import FOLDS
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import NotReady
from topwork.inputs.image_source import ImageSource
from topwork.runtime.agreement import is_off, measure
from topwork.runtime.backend import open_session
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.finetuning.finetune import Tuned
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.fit import finetune_phase, quantise_phase
from topwork_trainer.fit.attempts import Attempt, Attempts

LABELS = ("amber", "blue", "crimson")


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    """Return attempts with three classes of 30 pictures."""
    return Attempts(
        repository=Repository(tmp_path / "repository"),
        sources=[
            ImageSource(name=f"{label}/{index:02}", label=label, read=partial(bytes, content))
            for label in LABELS
            for index, content in enumerate(pictures(label, 30))
        ],
        recipe=tiny.LOGISTIC,
        seed=0,
        cores=2,
        cache=None,
        on_progress=lambda *_: None,
    )


class Tuner:
    """Stands for a tuner of the tiny backbone: embeddings of each fold as the test makes them."""

    photos = 1

    def __init__(
        self, folds: NDArray[np.int64], make: Callable[[int], NDArray[np.float32]]
    ) -> None:
        self.folds = folds
        self.made: list[int] = []
        self._make = make

    def results(self, _: object) -> Generator[Tuned, None, None]:
        """Yield the results of all folds."""
        for fold in range(FOLDS):
            self.made.append(fold)
            yield Tuned(fold=fold, embeddings=self._make(fold), weights={})

    def tuned_backbone(self, tuned: Tuned) -> int:
        """Return the fold instead of a backbone."""
        return tuned.fold


@dataclass
class Phase:
    """The phase with a ``Tuner`` of the given embeddings."""

    attempts: Attempts
    frozen: Attempt
    folds: NDArray[np.int64]
    tuner: Tuner | None = None
    stored: list[int] = field(default_factory=list)

    def run(
        self, make: Callable[[int], NDArray[np.float32]], *, always: bool = False
    ) -> tuple[Attempt | None, finetune_phase.Verdict]:
        """Return the result of the phase."""
        self.tuner = Tuner(self.folds, make)
        return finetune_phase.finetune_backbone(
            self.attempts,
            self.frozen,
            BackboneChoice(name="tiny"),
            FinetuneConfig(unfreeze="all"),
            always=always,
            checkpoints=Path("unused"),
        )

    def separated(self, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return embeddings that are perfect for ``rows`` and say nothing of the others."""
        targets = self.frozen.exemplars.targets
        width = self.frozen.exemplars.embeddings.shape[1]
        embeddings = np.random.default_rng(0).random((len(targets), width), dtype=np.float32)
        embeddings[rows] = 0.01
        embeddings[rows, targets[rows]] = 1
        return embeddings


@pytest.fixture
def phase(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> Phase:
    """Return the phase after a frozen attempt that cannot tell the labels apart."""
    model = tiny.backbone_model()
    info = attempts.repository.put_backbone(model, tiny.backbone_info(model))
    attempt = attempts.attempt(info)
    poor = np.random.default_rng(1).random(attempt.exemplars.embeddings.shape, dtype=np.float32)
    frozen = attempts.attempt_on(
        info, replace(attempt.exemplars, embedding_rows=poor), [], frozenset()
    )
    phase = Phase(attempts, frozen, frozen.exemplars.folds(attempts.seed))

    @contextmanager
    def fold_tuner(*_: object, **__: object) -> Iterator[Tuner]:
        assert phase.tuner is not None
        yield phase.tuner

    def store(_: object, fold: int) -> BackboneInfo:
        phase.stored.append(fold)
        return info

    monkeypatch.setattr(finetune_phase, "fold_tuner", fold_tuner)
    monkeypatch.setattr(finetune_phase, "store", store)
    monkeypatch.setattr(backbones, "load", lambda _: None)
    return phase


def test_proven_gain_is_published(phase: Phase) -> None:
    """The backbone tuned without fold 0 is stored; all photos but those of fold 0 are seen."""
    tuned, verdict = phase.run(lambda _: phase.separated(phase.folds >= 0))
    assert verdict.proven
    assert verdict.accuracy[0] == 1
    assert verdict.difference.images == len(phase.folds) == 90
    assert phase.stored == [0]
    assert tuned is not None
    names = np.array(phase.frozen.exemplars.names)
    assert set(np.array(tuned.exemplars.names)[tuned.exemplars.seen]) == set(
        names[phase.folds != 0]
    )
    assert set(tuned.learned.judged.rows) == set(np.flatnonzero(~tuned.exemplars.seen))


def test_each_fold_is_judged_by_the_backbone_tuned_without_it(phase: Phase) -> None:
    """Embeddings that are good only for the photos of their tuning prove nothing."""
    assert phase.tuner is None
    tuned, verdict = phase.run(lambda fold: phase.separated(phase.folds != fold))
    assert verdict.accuracy[0] < 0.6
    assert not verdict.proven
    assert (tuned, phase.stored) == (None, [])
    tuned, verdict = phase.run(lambda _: phase.separated(phase.folds >= 0))
    assert verdict.accuracy[0] == 1


def test_equal_embeddings_are_hopeless_after_two_folds(phase: Phase) -> None:
    """Without any gain in two folds the others are not tuned, and the verdict tells how many."""
    tuned, verdict = phase.run(lambda _: phase.frozen.exemplars.embeddings)
    assert phase.tuner is not None
    assert phase.tuner.made == [0, 1]
    assert (tuned, verdict.folds, verdict.proven) == (None, 2, False)
    assert "in 2 folds" in str(verdict)


def test_published_regardless_of_the_verdict(phase: Phase) -> None:
    """With ``always`` all folds are judged, and the backbone is stored without a gain."""
    tuned, verdict = phase.run(lambda _: phase.frozen.exemplars.embeddings, always=True)
    assert tuned is not None
    assert (verdict.folds, phase.stored) == (5, [0])


def test_too_few_photos_are_refused(phase: Phase) -> None:
    """A class whose photos are all in one fold cannot be held out."""
    exemplars = phase.frozen.exemplars
    group = np.zeros((len(exemplars), 16), dtype=np.uint8)
    group[exemplars.targets == 0] = 1
    phase.frozen = replace(phase.frozen, exemplars=replace(exemplars, groups=group))
    with pytest.raises(NotReady, match="90 photos are too few"):
        phase.run(lambda _: exemplars.embeddings)


def test_quantised_backbone_has_the_seen_photos_of_its_origin(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos on which the fp32 backbone was fine-tuned are seen by the int8 backbone, too."""
    model = tiny.backbone_model()
    info = attempts.repository.put_backbone(model, tiny.backbone_info(model))
    seen = frozenset(source.name for source in attempts.sources[::2])
    monkeypatch.setattr(quantise_phase, "quantise", lambda *_: model)
    monkeypatch.setattr(quantise_phase, "speed_ratio", lambda *_: 2.0)
    int8, _ = quantise_phase.quantise_backbone(attempts, attempts.attempt(info, seen=seen))
    assert set(np.array(int8.exemplars.names)[int8.exemplars.seen]) == seen


def test_quantised_backbone_has_its_twin_and_expected_embeddings(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected embeddings are those of the int8 graph on this machine, not of fp32."""
    model = tiny.backbone_model()
    info = attempts.repository.put_backbone(model, tiny.backbone_info(model))
    graph = tiny.saturating_backbone_model()
    monkeypatch.setattr(quantise_phase, "quantise", lambda *_: graph)
    monkeypatch.setattr(quantise_phase, "speed_ratio", lambda *_: 2.0)
    int8, _ = quantise_phase.quantise_backbone(attempts, attempts.attempt(info))
    assert (int8.backbone.precision, int8.backbone.twin) == ("int8", info.digest)
    assert measure(int8.backbone, open_session(graph, output="embedding").run) == 1.0
    assert is_off(measure(int8.backbone, open_session(model, output="embedding").run))


def test_twin_of_a_backbone_that_is_off_embeds_the_photos(
    attempts: Attempts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning tells it, and the cache keeps the rows of the twin apart."""
    repository, twin = attempts.repository, tiny.backbone_model()
    stored = repository.put_backbone(twin, tiny.backbone_info(twin))
    graph = tiny.saturating_backbone_model()
    info = repository.put_backbone(graph, tiny.quantised_info(graph))
    with EmbeddingCache(tmp_path / "cache") as cache:
        cached = replace(attempts, cache=cache)
        off = cached.attempt(info)
        assert "backbone is off" in caplog.text
        caplog.clear()
        right = cached.attempt(stored)
    assert caplog.text == ""
    assert off.backbone == info
    np.testing.assert_array_equal(off.exemplars.embeddings, right.exemplars.embeddings)
    assert off.exemplars.embeddings.max() > 32
