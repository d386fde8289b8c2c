"""Phases of a fit: a fine-tuned backbone is judged only on photos that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import tiny
from support.pictures import pictures

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.runtime.agreement import is_off, measure
from topwork.runtime.backend import open_session
from topwork.training.embed import ImageSource
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.fit import finetune_phase, quantise_phase
from topwork_trainer.fit.attempts import Attempts

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


def test_photos_used_by_fine_tuning_are_marked_as_seen(
    attempts: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and validation photos are marked as seen, and no others are."""
    model = tiny.backbone_model()
    info = attempts.repository.put_backbone(model, tiny.backbone_info(model))
    used: dict[str, set[str]] = {}

    def finetune(
        _: object,
        train: Sequence[ImageSource],
        validation: Sequence[ImageSource],
        *__: object,
        **___: object,
    ) -> SimpleNamespace:
        used["train"], used["validation"] = (
            {photo.name for photo in photos} for photos in (train, validation)
        )
        return SimpleNamespace(backbone=None)

    def store(*_: object) -> BackboneInfo:
        return info

    monkeypatch.setattr(finetune_phase, "finetune", finetune)
    monkeypatch.setattr(finetune_phase, "store", store)
    monkeypatch.setattr(backbones, "load", lambda _: None)
    frozen = attempts.attempt(info)
    tuned, _ = finetune_phase.finetune_backbone(
        attempts,
        frozen,
        BackboneChoice(name="tiny"),
        unfreeze="all",
        epochs=1,
        mirror=True,
        checkpoint=tmp_path / "checkpoint",
    )
    names = np.array(tuned.exemplars.names)
    assert used["train"]
    assert used["validation"]
    assert set(names[tuned.exemplars.seen]) == used["train"] | used["validation"]
    judged = set(names[tuned.learned.judged.rows])
    assert judged == set(names) - used["train"] - used["validation"] != set()


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
