"""Pacing of the images that a model keeps in a day."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from topwork.bundle.candidates import start_of_day
from topwork.bundle.review_policy import ReviewPolicy
from topwork.review.offer import Offer

BURST = 0.25
"""Raising it keeps more images of a short test, and fewer of the rest of a busy day."""

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Kept:
    """Images that were kept today: the useful ones, and those drawn at random."""

    useful: int = 0
    random: int = 0


class Budget:
    """Decides which images of one model are kept, so that a busy day's budget lasts until midnight.

    A share of BURST may be kept at any time of the day, the rest in proportion to the part of the
    day that has passed. While that allowance is used up, the most useful image is held, and it is
    kept as soon as another one is allowed. For the random share the day has as many turns as
    images; of each turn one image is drawn, all with the same probability. Thread-safe.
    """

    def __init__(self, policy: ReviewPolicy, *, draw: Callable[[], float] = random.random) -> None:
        self.policy = policy
        self._random = round(policy.random_share * policy.images_per_day)
        self._useful = policy.images_per_day - self._random
        self._draw = draw
        self._lock = threading.Lock()
        self._day = 0.0
        self._kept = Kept()
        self._pending = 0
        self._best: Offer | None = None
        self._turn = -1
        self._turn_images = 0
        self._drawn: Offer | None = None

    def count(self, kept: Kept, now: float) -> None:
        """Take the number of images that all servers have kept on the day of ``now``."""
        with self._lock:
            self._day, self._kept = start_of_day(now), kept

    def settle(self) -> None:
        """Forget an image that was to be kept: it was stored and counted, or dropped."""
        with self._lock:
            self._pending -= 1

    def useful(self, offer: Offer, now: float) -> Offer | None:
        """Return the image to keep now that ``offer`` came; None: none."""
        with self._lock:
            best = self._best
            if best is None or offer.usefulness > best.usefulness:
                best = offer
            if self._allowed(now) <= 0:
                self._best = best
                return None
            self._best = None if best is self._best else self._best
            self._pending += 1
            return best

    def random(self, offer: Callable[[], Offer], now: float) -> Offer | None:
        """Return the image that the last turn drew, if it is over; take part in this turn."""
        if not self._random:
            return None
        with self._lock:
            turn = int(now // (DAY / self._random))
            ended = None
            if turn != self._turn:
                ended, self._drawn = self._drawn, None
                self._turn, self._turn_images = turn, 0
            self._turn_images += 1
            if self._draw() * self._turn_images < 1:
                self._drawn = offer()
            if ended is not None:
                self._pending += 1
            return ended

    def _allowed(self, now: float) -> int:
        if start_of_day(now) != self._day:
            self._day, self._kept = start_of_day(now), Kept()
        passed = (now - self._day) / DAY
        return (
            int(self._useful * (BURST + (1 - BURST) * passed)) - self._kept.useful - self._pending
        )
