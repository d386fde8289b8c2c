"""Opening of a repository: a directory, or a bucket of an object store by URL."""

from __future__ import annotations

from pathlib import Path

from topwork.bundle.location import Location, ObjectCache, bucket_key
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.storage.file_storage import FileStorage
from topwork.bundle.storage.storage import Storage
from topwork.bundle.store import Repository


def open_storage(
    location: Location,
    *,
    database: str = "",
    cache: ObjectCache | None = None,
    writes: bool = False,
) -> Storage:
    """Open the storage at a location; see ``open_repository``."""
    if isinstance(location, Path):
        return FileStorage(location)
    from topwork.bundle.storage.buckets import open_bucket
    from topwork.bundle.storage.database_locks import locks_of

    cache = cache or ObjectCache()
    return open_bucket(
        location,
        locks=locks_of(database, bucket_key(location)),
        cache_directory=cache.directory,
        cache_bytes=cache.size,
        writes=writes,
    )


def open_repository(
    location: Location,
    signing: Signing = UNSIGNED,
    *,
    database: str = "",
    cache: ObjectCache | None = None,
    writes: bool = False,
) -> Repository:
    """Open the repository at a location.

    Writers of a bucket hold locks in ``database``, the URL of the database of operations; without
    it two of them can only fail with Stale, not wait. ``writes`` checks that the bucket can be
    written safely. Raises InvalidInput if the bucket cannot be used, OSError if it cannot be
    reached.
    """
    storage = open_storage(location, database=database, cache=cache, writes=writes)
    return Repository(storage, signing)
