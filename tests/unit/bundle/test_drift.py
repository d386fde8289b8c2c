"""Drift: one-sided distance from the out-of-fold distribution, and its threshold."""

from __future__ import annotations

import numpy as np
import pytest

from topwork.bundle.drift import (
    BINS,
    LEAST_DRIFT,
    LEAST_IMAGES,
    WINDOW,
    UnknownDistribution,
    UnknownWindow,
)

REFERENCE = UnknownDistribution.of(np.random.default_rng(0).beta(1, 3, 2000))


def drift_of(probabilities: np.ndarray) -> tuple[float, float]:
    """Return the drift and the threshold after these images."""
    window = UnknownWindow(REFERENCE)
    for probability in probabilities.tolist():
        window.add(probability)
    found = window.drift()
    assert found is not None
    return found


def test_bins_have_equal_shares() -> None:
    """The edges are deciles: each bin has a tenth of the images."""
    assert REFERENCE.images == (200,) * BINS
    assert list(REFERENCE.edges) == sorted(REFERENCE.edges)


def test_equal_probabilities_make_no_drift() -> None:
    """Ties, which fill few bins, are in the same bins of the reference."""
    constant = UnknownDistribution.of(np.full(50, 0.25))
    window = UnknownWindow(constant)
    for _ in range(LEAST_IMAGES):
        window.add(0.25)
    found = window.drift()
    assert found is not None
    assert found[0] == 0


def test_drift_is_the_largest_difference_of_shares_above_an_edge() -> None:
    """Images above all edges have a drift of 0.9: a tenth is expected there; below all, none."""
    assert drift_of(np.ones(LEAST_IMAGES))[0] == pytest.approx(1 - 1 / BINS)
    assert drift_of(np.zeros(LEAST_IMAGES))[0] == 0
    half = np.concatenate([np.ones(200), np.random.default_rng(1).beta(1, 3, 200)])
    assert drift_of(half)[0] == pytest.approx(0.45, abs=0.05)


def test_images_of_the_same_distribution_stay_below_the_threshold() -> None:
    """None of 500 windows alerts, of the fewest images or of a full window."""
    random = np.random.default_rng(2)
    for images in (LEAST_IMAGES, WINDOW):
        for _ in range(250):
            drift, threshold = drift_of(random.beta(1, 3, images))
            assert drift < threshold


def test_threshold_falls_with_the_images_of_both_sides() -> None:
    """Few served images or few exemplars need a larger drift, many the least."""
    small = UnknownDistribution.of(np.linspace(0, 1, 20))
    assert small.threshold(200) > REFERENCE.threshold(100) > REFERENCE.threshold(200)
    assert REFERENCE.threshold(10_000) == LEAST_DRIFT


def test_window_has_no_drift_before_it_has_enough_images() -> None:
    """LEAST_IMAGES - 1 images give none."""
    window = UnknownWindow(REFERENCE)
    for _ in range(LEAST_IMAGES - 1):
        window.add(1.0)
    assert window.drift() is None


def test_window_forgets_old_images() -> None:
    """Unusual images count until WINDOW others have followed."""
    usual = np.random.default_rng(3).beta(1, 3, WINDOW)
    assert drift_of(np.concatenate([np.ones(300), usual])) == drift_of(usual)
    assert drift_of(np.concatenate([usual, np.ones(300)]))[0] > LEAST_DRIFT


@pytest.mark.parametrize(("edges", "images"), [((0.1, 0.2), (1, 2)), ((0.2, 0.1), (1, 2, 3))])
def test_damaged_distribution_is_refused(edges: tuple[float], images: tuple[int]) -> None:
    """Bins that do not match the edges, or edges that descend, raise ValueError."""
    with pytest.raises(ValueError, match="edges"):
        UnknownDistribution(edges=edges, images=images)
