"""Facts about objects of a bucket, and their sums for directories."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from topwork.bundle.storage.storage import Entry, Tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about an object from a listing or an answer."""

    name: str
    size: int
    time_ns: int
    """LastModified in ns since 1970; most stores round it down to a second."""
    tag: Tag

    @property
    def entry(self) -> Entry:
        """The facts that a storage has about any file."""
        return Entry(time_ns=self.time_ns, size=self.size)


def newest(listed: Collection[Facts]) -> int:
    """Return the newest time of objects in ns since 1970; 0 without any."""
    return max((facts.time_ns for facts in listed), default=0)


def total(listed: Collection[Facts], *, time_ns: int | None = None) -> Entry:
    """Return the sum of the sizes of objects, with their newest time or ``time_ns``."""
    return Entry(
        time_ns=newest(listed) if time_ns is None else time_ns,
        size=sum(facts.size for facts in listed),
    )
