"""Writer of candidates: leaves out duplicates and known images, and respects all limits exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Literal

from topwork.bundle.candidates import Candidate, CandidateReason, CandidateStore
from topwork.bundle.examples import ExampleIndex, rows_starting_with
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, NotReady, QuotaExceeded
from topwork.inputs.kinds import kind_of
from topwork.limits import ServerLimits
from topwork.review.budget import Budget
from topwork.review.offer import Offer
from topwork.review.queue_index import QueueIndex

Result = Literal["kept", "duplicate", "example", "budget", "quota", "disk"]
"""What became of an image."""


class Writer:
    """Writes the candidates of all models. Belongs to one thread at a time."""

    def __init__(
        self, repository: Repository, limits: ServerLimits, *, clock: Callable[[], float]
    ) -> None:
        self._repository = repository
        self._limits = limits
        self._clock = clock
        self._indexes: dict[str, QueueIndex] = {}
        self._examples: dict[str, tuple[int, ExampleIndex]] = {}

    def count(self, model: str, budget: Budget) -> None:
        """Tell ``budget`` what all servers have kept today."""
        index = self._index(model)
        with contextlib.suppress(OSError):  # the first image counts again
            index.refresh()
            budget.count(index.kept(self._clock()), self._clock())

    def write(self, offer: Offer, reason: CandidateReason, budget: Budget) -> Result:
        """Keep an image unless a limit forbids it, and return what became of it.

        Counts what all servers have kept while the model's directory is locked, so that the budget
        of the day is exact. Raises ImageError, NotFound, Corrupt, OSError.
        """
        candidate = offer.candidate(reason, self._limits)
        if self._is_example(candidate, offer.model):
            return "example"
        if self._is_disk_full(len(offer.image)):
            return "disk"
        store, index = CandidateStore(self._repository, offer.model), self._index(offer.model)
        with store.writing():
            index.refresh()
            try:
                if index.has(candidate, kind_of(offer.backbone.preprocess).alike):
                    return "duplicate"
                if index.is_full(len(offer.image), budget.policy.max_bytes):
                    return "quota"
                kept = index.kept(self._clock())
                if kept.useful + kept.random >= budget.policy.images_per_day:
                    return "budget"
                store.put(candidate, offer.image)
                index.refresh()
                return "kept"
            finally:
                budget.count(index.kept(self._clock()), self._clock())

    def _index(self, model: str) -> QueueIndex:
        if model not in self._indexes:
            self._indexes[model] = QueueIndex(CandidateStore(self._repository, model))
        return self._indexes[model]

    def _is_example(self, candidate: Candidate, model: str) -> bool:
        """Return True if the serving revision has learnt the image already."""
        with contextlib.suppress(NotFound, NotReady, Corrupt):  # then it is kept
            revision = self._repository.serving(model)
            known = self._examples.get(model)
            if known is None or known[0] != revision:
                index = self._repository.examples(self._repository.manifest(model, revision))
                self._examples[model] = known = revision, index
            return bool(rows_starting_with(known[1], candidate.digest).any())
        return False

    def _is_disk_full(self, coming: int) -> bool:
        space, limits = self._repository.storage.space(), self._limits
        return space is not None and space.lacks(
            coming, 1, least_bytes=limits.min_free_bytes, least_files=limits.min_free_inodes
        )


def correct(
    repository: Repository, offer: Offer, label: str, policy: ReviewPolicy, limits: ServerLimits
) -> Candidate:
    """Keep an image with the suggested ``label``, and return the candidate.

    Raises QuotaExceeded, NotReady if an operation learns it, ImageError, NotFound, OSError.
    """
    candidate = offer.candidate("corrected", limits, suggested_label=label)
    store = CandidateStore(repository, offer.model)
    index = QueueIndex(store)
    with store.writing():
        index.refresh()
        if candidate.digest in index.listing.claims:
            raise NotReady(
                f"an operation learns the image {candidate.digest[:12]} already",
                reason="CANDIDATE_CLAIMED",
            )
        known = index.candidates.get(candidate.digest)
        if known is None or known.record.reason != "corrected":
            most = policy.images_per_day
            if index.corrections(offer.time) >= most:
                raise QuotaExceeded(
                    f"{most} answers of {offer.model!r} were corrected today, which is the limit",
                    subject=f"models/{offer.model}",
                    reason="REVIEW_QUOTA",
                )
        if index.is_full(len(offer.image), policy.max_bytes):
            raise QuotaExceeded(
                f"the review queue of {offer.model!r} is full: label or discard candidates",
                subject=f"models/{offer.model}",
                reason="REVIEW_QUOTA",
            )
        store.replace(candidate, offer.image)
    return candidate
