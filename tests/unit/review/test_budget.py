"""Budget: pacing of the images that are kept in a day."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.offers import MIDNIGHT, offer

from topwork.bundle.review_policy import ReviewPolicy
from topwork.review.budget import DAY, Budget, Kept


def kept(budget: Budget, images: int, now: float) -> int:
    """Return how many of equal images are kept at a time."""
    return sum(budget.useful(offer(), now) is not None for _ in range(images))


def test_busy_day_spends_its_budget_by_midnight_and_not_before() -> None:
    """A quarter may be kept at once, five eighths by noon, and all of it by midnight."""
    budget = Budget(ReviewPolicy(images_per_day=80, random_share=0))
    assert kept(budget, 500, MIDNIGHT) == 20
    assert kept(budget, 500, MIDNIGHT + 60) == 0
    assert kept(budget, 500, MIDNIGHT + DAY / 2) == 30
    assert kept(budget, 500, MIDNIGHT + DAY - 0.001) == 29
    assert kept(budget, 500, MIDNIGHT + DAY) == 0, "the images of yesterday are not written yet"


def test_new_day_begins_without_images() -> None:
    """What was counted yesterday does not count today."""
    budget = Budget(ReviewPolicy(images_per_day=80, random_share=0))
    budget.count(Kept(useful=80), MIDNIGHT - 1)
    assert kept(budget, 500, MIDNIGHT - 0.5) == 0
    assert kept(budget, 500, MIDNIGHT) == 20


def test_most_useful_image_is_held_until_there_is_room() -> None:
    """Of the images that came while the allowance was used up, the best is kept next."""
    budget = Budget(ReviewPolicy(images_per_day=80, random_share=0))
    budget.count(Kept(useful=20), MIDNIGHT)
    for usefulness in (0.75, 0.95, 0.8):
        assert budget.useful(offer(usefulness, str(usefulness).encode()), MIDNIGHT) is None
    found = budget.useful(offer(0.85, b"late"), MIDNIGHT + DAY / 60)
    assert found is not None
    assert found.image == b"0.95"


def test_dropped_image_leaves_room_for_another() -> None:
    """An image that turned out to be a duplicate does not count."""
    budget = Budget(ReviewPolicy(images_per_day=4, random_share=0))
    assert kept(budget, 9, MIDNIGHT) == 1
    budget.settle()
    assert kept(budget, 9, MIDNIGHT) == 1


def test_one_image_of_each_turn_is_drawn() -> None:
    """The k-th image of a turn replaces the drawn one with probability 1/k; it is kept after it."""
    draws = iter([0.9, 0.4, 0.4, 0.9])
    policy = ReviewPolicy(images_per_day=24, random_share=1)
    budget = Budget(policy, draw=lambda: next(draws))
    for name in (b"first", b"second", b"third"):
        assert budget.random(lambda name=name: offer(name=name), MIDNIGHT) is None  # type: ignore[misc]
    found = budget.random(lambda: offer(name=b"of the next turn"), MIDNIGHT + 3601)
    assert found is not None
    assert found.image == b"second"


def test_without_a_random_share_nothing_is_drawn() -> None:
    """The share 0 needs no random numbers."""
    budget = Budget(ReviewPolicy(random_share=0), draw=lambda: pytest.fail("drawn"))
    assert budget.random(offer, MIDNIGHT) is None


@pytest.mark.parametrize(
    ("is_unknown", "unknown", "margin", "reason"),
    [
        (True, 0.9, 0.9, "unknown"),
        (False, 0.6, 0.9, "far"),
        (False, 0.4, 0.1, "uncertain"),
        (False, 0.4, 0.9, None),
        (False, None, 0.9, None),
    ],
)
def test_reason(is_unknown: bool, unknown: float | None, margin: float, reason: str | None) -> None:
    """An image is kept for the first reason that the policy has."""
    image = replace(offer(), is_unknown=is_unknown, unknown_probability=unknown, margin=margin)
    assert image.reason(ReviewPolicy()) == reason
    assert image.reason(ReviewPolicy(unknown=False, far=False, max_margin=0)) is None
