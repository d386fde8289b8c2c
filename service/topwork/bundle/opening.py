"""Opening of a repository in a directory or a bucket."""

from __future__ import annotations

from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.store import Repository
from topwork.storage.location import Location, ObjectCache
from topwork.storage.opening import open_storage


def open_repository(
    location: Location,
    signing: Signing = UNSIGNED,
    *,
    database: str = "",
    cache: ObjectCache | None = None,
    writes: bool = False,
) -> Repository:
    """Open the repository at a location. Parameters and errors are those of ``open_storage``."""
    storage = open_storage(location, database=database, cache=cache, writes=writes)
    return Repository(storage, signing)
