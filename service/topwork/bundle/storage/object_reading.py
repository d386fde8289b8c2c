"""Reading of files in an object store through the cache on the local disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from topwork.bundle.files import Absent
from topwork.bundle.storage import object_names as names
from topwork.bundle.storage.cache import Cache
from topwork.bundle.storage.objects import Missing, Objects
from topwork.bundle.storage.pointers import PointerList
from topwork.bundle.storage.storage import ABSENT, Tag
from topwork.errors import Corrupt


class CachedReading:
    """Reads documents by their tag, blobs by their sha256.

    ``identity`` distinguishes the cached documents of this bucket from those of others.
    """

    def __init__(
        self, objects: Objects, cache: Cache, pointers: PointerList, identity: str
    ) -> None:
        self._objects = objects
        self._cache = cache
        self._pointers = pointers
        self._identity = identity

    def read(self, key: str) -> bytes:
        """Return a file's bytes, unchanged ones from the cache. Raises Corrupt."""
        found = names.split_model(key)
        if found is not None and found.inner in names.DOCUMENTS:
            pointers = self._pointers.recent(found.name)
            facts = pointers.found.get(found.inner)
            if facts is None or found.hidden != (names.DELETED in pointers.found):
                raise _missing(key)
            cached = self._cache.document(f"{self._identity}/{names.object_name(key)}")
            if cached is not None and cached[0] == facts.tag:
                return cached[1]
        return self.read_tagged(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, Tag]:
        """Return a file's bytes with its ETag. Raises Corrupt."""
        name = self._name(key)
        url = f"{self._identity}/{name}"
        cached = self._cache.document(url)
        try:
            got = self._objects.get(name, unless=cached[0] if cached else ABSENT)
        except Missing:
            raise _missing(key) from None
        if got is None:
            assert cached is not None, "the store answered 304 without a condition"
            return cached[1], cached[0]
        content, facts = got
        self._cache.put_document(url, facts.tag, content)
        return content, facts.tag

    def read_verified(self, key: str, digest: str) -> bytes:
        """Return a file's bytes from the cache or the store. Raises Corrupt."""
        content = self._cache.blob(digest)
        if content is None:
            content = self._fetch(key, digest)
            self._cache.put_blob(digest, content)
        return content

    def local(self, key: str, digest: str, *, again: bool = False) -> Path:
        """Return the cached file with the bytes of ``key``. Raises Corrupt."""
        path = None if again else self._cache.path(digest)
        if path is None:
            content = self._fetch(key, digest)
            path = self._cache.put_blob(digest, content) or self._cache.temporary(content)
        return path

    def _name(self, key: str) -> str:
        """Return the name of the object with the content of a file."""
        name = names.object_name(key)
        if key.endswith(names.TIMED):
            facts = self._objects.first(name)
            return facts.name if facts is not None else name
        return name

    def _fetch(self, key: str, digest: str) -> bytes:
        try:
            got = self._objects.get(self._name(key))
        except Missing:
            raise _missing(key) from None
        assert got is not None, "the store answered 304 without a condition"
        actual = hashlib.sha256(got[0]).hexdigest()
        if actual != digest:
            raise Corrupt(f"{_short(key)} has sha256 {actual}, not {digest}: it was changed")
        return got[0]


def _short(key: str) -> str:
    return "/".join(key.split("/")[-4:])


def _missing(key: str) -> Absent:
    return Absent(f"{_short(key)} is missing")
