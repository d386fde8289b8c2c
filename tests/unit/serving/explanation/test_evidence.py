"""Evidence for a label: it adds up to the logit, and lies where the object is."""

from __future__ import annotations

import functools
import itertools
from typing import get_args

import numpy as np
import pytest
from support import pooling

from topwork.arrays import Float32Array
from topwork.bundle.features import make
from topwork.bundle.head import Head, Scorer
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.inputs.image import prepare
from topwork.learning.learn import learn
from topwork.runtime.backend import Session, open_session
from topwork.serving.explanation.evidence import Evidence, evidence
from topwork.serving.explanation.features import FeaturePart, Features, features
from topwork.serving.explanation.map_graph import MapLayout, with_maps
from topwork.serving.head import HeadLoader, LoadedHead

LABELS = ("amber", "blue", "crimson")
HEADS: tuple[HeadKind, ...] = tuple(kind for kind in get_args(HeadKind) if kind != "auto")
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
COMBINATIONS = [*itertools.product(HEADS, NORMALISATIONS)]
LINEAR = {"nearest_mean", "ridge", "logistic"}


@functools.cache
def mapped(kind: str) -> tuple[Session, MapLayout]:
    """Return the variant of a backbone."""
    model, layout = with_maps(pooling.model(kind))
    return open_session(model, output="embedding"), layout


@functools.cache
def fitted(head: HeadKind, normalisation: Normalisation, kind: str) -> LoadedHead:
    """Return a head as it is served."""
    exemplars = pooling.exemplars(pooling.model(kind))
    recipe = Recipe(head=head, normalisation=normalisation)
    content = to_onnx(learn(exemplars, seed=0, recipe=recipe).head)
    width = exemplars.embeddings.shape[1]
    return HeadLoader().load(content, width=width, labels=len(LABELS), unknown=False)


def explained(
    content: bytes, label: str, loaded: LoadedHead, kind: str = "relu"
) -> tuple[Evidence, float]:
    """Return the evidence in an image, and the logit that the served head gives."""
    session, layout = mapped(kind)
    row = session.run(prepare(content, pooling.SPEC).pixels[None])[0]
    index = LABELS.index(label)
    logit = float(loaded.logits(row[None, : layout.width])[0, index])
    return evidence(loaded.read(layout.width), features(row, layout), index, logit), logit


@pytest.mark.parametrize(("head", "normalisation"), COMBINATIONS)
@pytest.mark.parametrize("kind", ["relu", "signed"])
def test_map_bias_and_rest_are_the_logit(
    head: HeadKind, normalisation: Normalisation, kind: str
) -> None:
    """Nothing is left of the logit of a linear head, whatever its normalisation."""
    loaded = fitted(head, normalisation, kind)
    for label, index in (("amber", 40), ("blue", 41), ("crimson", 42)):
        found, logit = explained(pooling.flower(label, index)[0], label, loaded, kind)
        assert found.map.sum() + found.bias + found.rest == pytest.approx(logit, abs=1e-4)
        if head in LINEAR:
            assert found.rest == pytest.approx(0, abs=1e-4 * max(1, abs(logit)))


@pytest.mark.parametrize(("head", "normalisation"), COMBINATIONS)
def test_head_that_is_read_back_gives_the_same_logits(
    head: HeadKind, normalisation: Normalisation
) -> None:
    """Every kind that can be exported can be read."""
    loaded = fitted(head, normalisation, "relu")
    embeddings = pooling.exemplars(pooling.model()).embeddings
    found = loaded.read(embeddings.shape[1]).logits(embeddings)
    np.testing.assert_allclose(found, loaded.logits(embeddings), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["logistic", "kernel", "fourier"])
@pytest.mark.parametrize("kind", ["relu", "signed", "two_views", "joined", "int8", "tokens"])
def test_strongest_evidence_is_on_the_flower(head: HeadKind, kind: str) -> None:
    """Pointing game: at least nine of ten rendered flowers, whose places are known."""
    loaded = fitted(head, "sqrt_l2", kind)
    hits = 0
    for label, index in itertools.product(LABELS, range(100, 110)):
        content, (x, y) = pooling.flower(label, index)
        found, _ = explained(content, label, loaded, kind)
        row, column = np.unravel_index(found.map.argmax(), found.map.shape)
        rows, columns = found.map.shape
        hits += abs((column + 0.5) / columns - x) < 0.2 and abs((row + 0.5) / rows - y) < 0.2
    assert hits >= 27


def test_evidence_against_a_label_is_negative() -> None:
    """A blue flower is evidence against crimson."""
    content, (x, y) = pooling.flower("blue", 44)
    found, _ = explained(content, "crimson", fitted("logistic", "sqrt_l2", "relu"))
    place = int(y * pooling.CELLS), int(x * pooling.CELLS)
    assert found.map[place] < 0


def test_values_that_cancel_out_give_bounded_shares() -> None:
    """A feature of 1 and -1 has a mean of almost 0, by which no value is divided."""
    values = np.ones((4, 4, 2), dtype=np.float32)
    values[:2, :, 0] = -1
    values[..., 0] += 1e-7
    embedding: Float32Array = values.mean(axis=(0, 1))
    head = Head(
        normaliser=make("sqrt_l2", np.zeros((1, 2), dtype=np.float32)),
        scorer=Scorer(weights=np.ones((1, 2), dtype=np.float32), bias=np.zeros(1, np.float32)),
        temperature=1.0,
    )
    logit = float(head.logits(embedding[None])[0, 0])
    found = evidence(head, Features(embedding, (FeaturePart(0, values),)), 0, logit)
    assert found.map.sum() == pytest.approx(logit, abs=1e-5)
    assert np.abs(found.map).max() < 2 * logit / found.map.size
