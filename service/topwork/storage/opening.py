"""Opening of a storage: a directory, or a bucket of an object store by URL."""

from __future__ import annotations

from pathlib import Path

from topwork.storage.file_storage import FileStorage
from topwork.storage.location import Location, ObjectCache, bucket_key
from topwork.storage.storage import Storage


def open_storage(
    location: Location,
    *,
    database: str = "",
    cache: ObjectCache | None = None,
    writes: bool = False,
) -> Storage:
    """Open the storage at a location.

    Writers of a bucket hold locks in ``database``, the URL of the database of operations; without
    it two of them can only fail with Stale, not wait. ``writes`` checks that the bucket can be
    written safely. Raises InvalidInput if the bucket cannot be used, OSError if it cannot be
    reached.
    """
    if isinstance(location, Path):
        return FileStorage(location)
    from topwork.storage.bucket.opening import open_bucket
    from topwork.storage.database_locks import locks_of

    cache = cache or ObjectCache()
    return open_bucket(
        location,
        locks=locks_of(database, bucket_key(location)),
        cache_directory=cache.directory,
        cache_bytes=cache.size,
        writes=writes,
    )
