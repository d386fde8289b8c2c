"""Objects of a bucket outside of repositories; the import needs obstore."""

from __future__ import annotations

import os

import obstore
from obstore import exceptions
from obstore.store import from_url

from topwork.errors import InvalidInput
from topwork.printable import printable
from topwork.storage.bucket.objects import BULK_CLIENT, CLIENT, RETRY, Conflict, Objects, Unanswered
from topwork.storage.storage import ABSENT


class Bucket(Objects):
    """All objects of a bucket."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists; return True if this call has written it.

        Of several writers with the same content, one gets True. ``put`` does not tell them apart.
        """

        def request() -> None:
            obstore.put(self._bulk, name, content, mode="create", use_multipart=False)

        try:
            try:
                self._call("write", request)
            except Unanswered:  # it may have been written
                self.put(name, content, expected=ABSENT)
        except Conflict:
            return False
        return True


def connect(root: str, *, field: str) -> Bucket:
    """Return the bucket ``s3://bucket``; see ``bucket_files.open_bucket``."""
    clients = [CLIENT.copy(), BULK_CLIENT.copy()]
    for client in clients:
        if os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}:
            client["allow_http"] = True
    try:
        store, bulk = (
            from_url(root, client_options=client, retry_config=RETRY) for client in clients
        )
    except (exceptions.BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"{printable(root)} cannot be opened: {reason}", field=field) from None
    return Bucket(store, bulk, root)
