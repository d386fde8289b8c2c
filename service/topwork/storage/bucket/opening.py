"""Opening of a repository's storage in an object store, by the URL of a prefix in a bucket."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.errors import InvalidInput
from topwork.storage.bucket.cache import Cache
from topwork.storage.location import SCHEMES
from topwork.storage.locks import Locks
from topwork.storage.storage import Storage

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from topwork.storage.bucket.objects import Objects

OPENED = (*SCHEMES, "memory")

_memory: dict[str, Any] = {}
_mutex = threading.Lock()


def open_bucket(
    location: str,
    *,
    locks: Locks | None = None,
    cache_directory: Path,
    cache_bytes: int,
    writes: bool = False,
) -> Storage:
    """Return the storage at ``s3://bucket/prefix``, ``gs://...``, ``az://...``.

    ``memory://name`` exists in this process alone. Credentials, region and endpoint come from the
    environment, such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL. ``writes``: check that the bucket
    has conditional writes, and permits writing. Raises InvalidInput, OSError.
    """
    scheme = location.partition("://")[0]
    if scheme not in OPENED:
        raise InvalidInput(
            f"the repository {_without_secrets(location)!r} is neither a path nor the URL of a "
            f"bucket, {', '.join(f'{known}://' for known in SCHEMES)}",
            field="repository",
        )
    try:
        from topwork.storage.bucket.object_storage import ObjectStorage
        from topwork.storage.bucket.objects import Objects
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "obstore":
            raise
        raise InvalidInput(
            f"a repository in an object store, such as {scheme}://, needs "
            "pip install 'topwork[s3]'",
            field="repository",
        ) from None
    url = _without_secrets(location).rstrip("/")
    store, bulk, identity = _stores(location.rstrip("/"))
    objects = Objects(store, bulk, url)
    if writes:
        check_writes(objects)
    return ObjectStorage(
        objects,
        cache=Cache(cache_directory, cache_bytes),
        locks=locks,
        url=url,
        identity=identity,
    )


def check_writes(objects: Objects) -> None:
    """Raise OSError unless the bucket permits writing, InvalidInput if it ignores conditions."""
    from topwork.storage.bucket.names import PROBES
    from topwork.storage.bucket.objects import Conflict
    from topwork.storage.storage import ABSENT, Tag

    name = f"{PROBES}/{uuid.uuid4().hex}"
    objects.put(name, objects.nonce(), expected=ABSENT)
    try:
        for expected in (ABSENT, Tag('"00000000000000000000000000000000"')):
            try:
                objects.put(name, objects.nonce(), expected=expected)
            except Conflict:
                continue
            raise InvalidInput(
                f"{objects.url}: this object store ignores the conditions of writes (If-None-Match "
                "and If-Match), without which two writers may overwrite each other",
                field="repository",
            )
    finally:
        objects.delete([name])


def _stores(url: str) -> tuple[ObjectStore, ObjectStore, str]:
    """Return the store of a URL, the same for long uploads, and a name for its cached documents."""
    from obstore import exceptions
    from obstore.store import MemoryStore, from_url

    from topwork.storage.bucket import objects

    if url.startswith("memory://"):
        with _mutex:
            store, identity = _memory.setdefault(url, (MemoryStore(), f"{url}#{uuid.uuid4().hex}"))
        return store, store, identity
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    clients = [objects.CLIENT.copy(), objects.BULK_CLIENT.copy()]
    for client in clients:
        if os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}:
            client["allow_http"] = True
    try:
        store, bulk = (
            from_url(url, client_options=client, retry_config=objects.RETRY) for client in clients
        )
    except (exceptions.BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(
            f"the repository {_without_secrets(url)!r} cannot be opened: {reason}",
            field="repository",
        ) from None
    return store, bulk, f"{url}#{endpoint}"


def _without_secrets(url: str) -> str:
    """Return a URL without user, password and query."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"
