"""Feature maps of backbones, and variants of their graphs that output them."""

from __future__ import annotations

import numpy as np
import pytest
from support import pooling, tiny

from topwork.inputs.image import preprocess
from topwork.runtime.backend import open_session
from topwork.serving.explanation.features import Features, features
from topwork.serving.explanation.map_graph import NoMap, with_maps

FLOWERS = [
    preprocess(pooling.flower(label, index)[0], pooling.SPEC)
    for label, index in (("crimson", 2), ("blue", 2), ("amber", 3))
]


def mapped(kind: str) -> list[Features]:
    """Return the features of the flowers with a kind of backbone, all in one run."""
    model, layout = with_maps(pooling.model(kind))
    rows = open_session(model, output="embedding").run(np.stack(FLOWERS))
    assert rows.shape == (len(FLOWERS), layout.row_width)
    return [features(row, layout) for row in rows]


@pytest.mark.parametrize("kind", pooling.KINDS)
def test_mean_of_the_map_is_the_embedding(kind: pooling.Kind) -> None:
    """The embedding of the variant is that of the stored graph."""
    plain = open_session(pooling.model(kind), output="embedding").run(np.stack(FLOWERS))
    for row, found in zip(plain, mapped(kind), strict=True):
        np.testing.assert_allclose(found.embedding, row, rtol=1e-5, atol=1e-6)
        means = np.concatenate([part.values.mean(axis=(0, 1)) for part in found.parts])
        np.testing.assert_allclose(means, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", pooling.KINDS)
def test_map_of_a_weighted_sum_adds_up_to_it(kind: pooling.Kind) -> None:
    """Also if parts have different numbers of cells."""
    for found in mapped(kind):
        weights = np.random.default_rng(0).normal(size=len(found.embedding))
        spread = found.spread(weights)
        assert spread.shape == (pooling.CELLS, pooling.CELLS)
        assert spread.sum() == pytest.approx(found.embedding @ weights, abs=1e-5)


def test_second_view_is_mirrored_back() -> None:
    """The features of a flower are where it is, not at its mirror image."""
    centre = pooling.flower("crimson", 2)[1]
    (part,) = mapped("two_views")[0].parts
    _, column = np.unravel_index(part.values.sum(axis=2).argmax(), part.values.shape[:2])
    assert column == pytest.approx(centre[0] * pooling.CELLS - 0.5, abs=1.5)
    assert abs(centre[0] - 0.5) > 0.2, "the flower is at one side"


@pytest.mark.parametrize("kind", pooling.WITHOUT_MAP)
def test_backbone_without_map_is_refused(kind: str) -> None:
    """A maximum, a class token, weighted means, and patches side by side are no mean."""
    with pytest.raises(NoMap, match=r"^its embedding is no "):
        mapped(kind)


def test_tiny_backbone_has_no_map() -> None:
    """The reason is a phrase."""
    with pytest.raises(NoMap, match="operator AveragePool"):
        with_maps(tiny.backbone_model())
