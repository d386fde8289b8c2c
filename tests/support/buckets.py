"""Objects of tests below a prefix of a bucket, whose credentials are in the environment."""

from __future__ import annotations

import obstore
from obstore.store import from_url


class Bucket:
    """Objects below the URL of a prefix."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = from_url(url, client_options={"allow_http": True})

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        obstore.put(self._store, name, content)

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return obstore.get(self._store, name).bytes().to_bytes()

    def names(self) -> list[str]:
        """Return the sorted names of all objects."""
        return sorted(meta["path"] for page in obstore.list(self._store) for meta in page)

    def delete(self, name: str) -> None:
        """Delete an object."""
        obstore.delete(self._store, name)
