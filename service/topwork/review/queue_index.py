"""Index of a model's candidates in memory: digests, fingerprints, counts of a day."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np

from topwork.bundle.candidates import Candidate, CandidateStore, Listing, start_of_day
from topwork.errors import Corrupt, NotFound
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS
from topwork.review.budget import Kept
from topwork.storage.storage import Entry

MAX_CANDIDATES = 5_000
"""Raising it lets a model have more candidates, and makes lists of them slower."""


class QueueIndex:
    """What the directory of a model's candidates has; belongs to one thread."""

    def __init__(self, store: CandidateStore) -> None:
        self._store = store
        self._known: dict[str, Candidate] = {}
        self._files: dict[str, Entry] = {}
        self.listing = Listing()

    def refresh(self) -> None:
        """Read the directory, and the candidates that are new in it. Raises OSError."""
        self.listing = self._store.listing()
        stored = self.listing.candidates
        for digest, file in [*self._files.items()]:
            if stored.get(digest) != file:  # deleted, or replaced by a correction
                del self._files[digest]
                self._known.pop(digest, None)
        for digest in stored.keys() - self._files.keys():
            self._files[digest] = stored[digest]
            with contextlib.suppress(NotFound, Corrupt):  # deleted meanwhile, or damaged
                self._known[digest] = self._store.read(digest)

    @property
    def candidates(self) -> Mapping[str, Candidate]:
        """The readable candidates by image digest."""
        return self._known

    def kept(self, now: float) -> Kept:
        """Return the images that were kept on the day of ``now``, without corrections."""
        today = start_of_day(now)
        recent = [
            found.record.reason
            for digest, found in self._known.items()
            if self.listing.candidates[digest].time >= today
        ]
        gone = sum(file.time >= today for file in self.listing.gone.values())
        drawn = recent.count("random")
        return Kept(useful=len(recent) - drawn - recent.count("corrected") + gone, random=drawn)

    def corrections(self, now: float) -> int:
        """Return the corrections that were kept on the day of ``now``."""
        today = start_of_day(now)
        return sum(
            found.record.reason == "corrected" and self.listing.candidates[digest].time >= today
            for digest, found in self._known.items()
        )

    def is_full(self, more: int, most: int) -> bool:
        """Return True if an image of ``more`` bytes exceeds ``most`` bytes or MAX_CANDIDATES."""
        listing = self.listing
        return listing.size() + more > most or len(listing.candidates) >= MAX_CANDIDATES

    def has(self, candidate: Candidate, alike: Callable[[bytes, bytes], bool]) -> bool:
        """Return True if the image, or a near-duplicate of it, is a candidate or is gone.

        ``alike`` is that of the kind of inputs.
        """
        if candidate.digest in self.listing.candidates or candidate.digest in self.listing.gone:
            return True
        others = [*self._known.values()]
        if not others:
            return False
        prints = np.stack([other.fingerprint for other in others])
        bits = np.unpackbits(prints ^ candidate.fingerprint, axis=1).sum(axis=1)
        near = np.flatnonzero(bits <= NEAR_DUPLICATE_BITS).tolist()
        return any(alike(others[row].preview, candidate.preview) for row in near)
