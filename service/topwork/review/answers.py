"""Recent answers, in memory, so that a caller can correct one."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from topwork.errors import NotFound
from topwork.review.offer import Offer

ANSWER_SECONDS = 600.0
"""Raising it lets callers correct older answers."""

ANSWER_BYTES = 64 * 2**20
"""Raising it retains more answers on a busy server: about 3,000 photos of 20 KB."""


class RecentAnswers:
    """LRU of answers by random ids, bounded by age and bytes. Thread-safe."""

    def __init__(
        self, *, most_bytes: int = ANSWER_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answers: OrderedDict[str, tuple[float, Offer]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._most_bytes = most_bytes
        self._clock = clock

    def add(self, offer: Offer) -> str:
        """Return the id of an answer, which nobody can guess."""
        identifier = secrets.token_hex(16)
        with self._lock:
            self._answers[identifier] = self._clock(), offer
            self._bytes += _size(offer)
            self._expire()
        return identifier

    def get(self, model: str, identifier: str) -> Offer:
        """Return the answer of a model. Raises NotFound if it is too old, or of another server."""
        added, offer = self._answers.get(identifier, (0.0, None))
        if offer is None or offer.model != model or added < self._clock() - ANSWER_SECONDS:
            raise NotFound(
                f"answer {identifier[:40]!r} of model {model!r} is not known: this server must "
                f"have given it within the last {ANSWER_SECONDS / 60:.0f} minutes, while the "
                "review policy was on",
                kind="answer",
                resource=identifier[:40],
                reason="ANSWER_UNKNOWN",
            )
        return offer

    def expire(self) -> None:
        """Forget the answers that are too old."""
        with self._lock:
            self._expire()

    def drop(self, model: str) -> None:
        """Forget all answers of a model."""
        with self._lock:
            for identifier, (_, offer) in [*self._answers.items()]:
                if offer.model == model:
                    del self._answers[identifier]
                    self._bytes -= _size(offer)

    def _expire(self) -> None:
        before = self._clock() - ANSWER_SECONDS
        while self._answers:
            added, oldest = next(iter(self._answers.values()))
            if self._bytes <= self._most_bytes and added >= before:
                break
            self._answers.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(offer: Offer) -> int:
    return len(offer.image) + offer.embedding.nbytes + 500
