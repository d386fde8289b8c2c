"""Objects of a bucket by name: requests with bounded retries, and plain errors.

Only this module and ``opening`` import obstore. It retries 503 and cut connections for about 4
seconds; a request that is not answered within 4 seconds is sent once more.
"""

from __future__ import annotations

import errno
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore import exceptions

from topwork.storage.bucket.facts import Facts
from topwork.storage.storage import ABSENT, ForeignName, Tag, Unreachable

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_T = TypeVar("_T")

BULK = 1 << 20
"""Bytes from which an upload has minutes instead of seconds."""

ATTEMPT_SECONDS = 4.0
"""Raising it lets a slow store answer; a server notices later that the store is gone."""

PARALLEL = 16
"""Number of concurrent requests for many objects."""

_CONNECT = timedelta(seconds=2)
_WHOLE = timedelta(minutes=10)

CLIENT: ClientConfig = {
    "connect_timeout": _CONNECT,
    "read_timeout": timedelta(seconds=ATTEMPT_SECONDS),
    "timeout": _WHOLE,
}
"""Timeouts of all requests but long uploads, whose answer may take minutes."""

BULK_CLIENT: ClientConfig = {"connect_timeout": _CONNECT, "timeout": _WHOLE}

RETRY: RetryConfig = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=ATTEMPT_SECONDS - 0.5),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}

_AND_VERSION = " version "
"""Separates an ETag from the version that Google's conditional writes name instead."""

_PATH = re.compile(r'Path "(.{0,300}?)"(?: contained|: Encountered)', re.DOTALL)
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")


class Missing(Exception):
    """The object does not exist."""


class Conflict(Exception):
    """The object exists, or has another tag than expected."""


class Unanswered(Unreachable):
    """The store did not answer in time, or the connection broke: the request may have succeeded."""


class Objects:
    """The objects of a bucket below a prefix.

    ``bulk`` is the same store with timeouts for long uploads. Its methods raise OSError.
    """

    def __init__(self, store: ObjectStore, bulk: ObjectStore, url: str) -> None:
        self._store = store
        self._bulk = bulk
        self.url = url

    def get(self, name: str, *, unless: Tag = ABSENT) -> tuple[bytes, Facts] | None:
        """Return bytes and facts; None if the object still has the tag ``unless``.

        Raises Missing.
        """

        def request() -> tuple[bytes, Facts] | None:
            try:
                options: GetOptions = {}
                if unless:
                    options = {"if_none_match": unless.partition(_AND_VERSION)[0]}
                got = obstore.get(self._store, name, options=options)
                return got.bytes().to_bytes(), _facts(got.meta)
            except exceptions.NotModifiedError:
                return None

        return self._call("read", request)

    def head(self, name: str) -> Facts | None:
        """Return facts about an object; None if it does not exist."""
        try:
            return self._call("read", lambda: _facts(obstore.head(self._store, name)))
        except Missing:
            return None

    def heads(self, names: Collection[str]) -> dict[str, Facts | None]:
        """Return ``head`` of many objects."""
        return dict(zip(names, self.parallel(self.head, names), strict=True))

    def parallel(self, call: Callable[[str], _T], names: Collection[str]) -> list[_T]:
        """Call a function for each name, several at a time; raises what the first error was."""
        if len(names) < 2:
            return [call(name) for name in names]
        with ThreadPoolExecutor(min(PARALLEL, len(names))) as pool:
            return list(pool.map(call, names))

    def put(self, name: str, content: bytes, *, expected: Tag | None = None) -> None:
        """Write an object with one request. Raises Conflict.

        ``expected``: its tag until now; ABSENT: it does not exist yet; None: anything. A request
        that was repeated because its answer got lost succeeds if the object has our bytes.
        """
        mode: PutMode = "overwrite"
        if expected is not None:
            e_tag, _, version = expected.partition(_AND_VERSION)
            mode = "create"
            if expected:
                mode = {"e_tag": e_tag, "version": version} if version else {"e_tag": e_tag}
        store = self._bulk if len(content) >= BULK else self._store

        def request() -> None:
            obstore.put(store, name, content, mode=mode, use_multipart=False)

        began = time.monotonic()
        while True:
            again = time.monotonic() - began < ATTEMPT_SECONDS
            try:
                self._call("write", request)
            except Conflict:
                stored = self._stored(name)
                if stored == content:
                    return
                # S3 answers 409 also for a concurrent deletion, or to a write without a condition.
                if again and (expected is None or (stored is None and expected == ABSENT)):
                    continue
                if expected is None:
                    text = f"{self.url}: the store refused to write (conflict)"
                    raise OSError(errno.EIO, text) from None
                raise
            except Unanswered:
                if not again:
                    raise
            else:
                return

    def listed(self, prefix: str) -> Iterator[Facts]:
        """Yield the objects below a prefix, which ends with a whole name, in order of names."""
        for page in self._pages(prefix):
            # Some stores list a directory itself, as an empty object.
            yield from (facts for facts in map(_facts, page) if facts.name != prefix)

    def first(self, prefix: str) -> Facts | None:
        """Return the first object below a prefix, or None."""
        return next(self.listed(prefix), None)

    def children(self, prefix: str) -> tuple[dict[str, Facts], list[str]]:
        """Return the objects directly below a prefix, and the directories, by their own names."""
        found = self._call("list", lambda: obstore.list_with_delimiter(self._store, prefix or None))
        objects = [facts for facts in map(_facts, found["objects"]) if facts.name != prefix]
        files = {facts.name.rpartition("/")[2]: facts for facts in objects}
        return files, sorted(name.rpartition("/")[2] for name in found["common_prefixes"])

    def delete(self, names: Collection[str]) -> None:
        """Delete objects, also such that do not exist."""
        if names:
            listed = [*names]

            def request() -> None:
                try:
                    obstore.delete(self._store, listed)
                except FileNotFoundError:  # some stores say so, for the first of them
                    for name in listed:
                        try:
                            obstore.delete(self._store, name)
                        except FileNotFoundError:
                            continue

            self._call("delete", request)

    def nonce(self) -> bytes:
        """Return random bytes, for an object that only has to differ."""
        return secrets.token_hex(16).encode()

    def _stored(self, name: str) -> bytes | None:
        try:
            got = self.get(name)
        except Missing:
            return None
        return None if got is None else got[0]

    def _pages(self, prefix: str) -> Iterator[list[ObjectMeta]]:
        """Yield the pages of a listing; one that breaks continues behind the last name."""
        last: str | None = None
        while True:

            def first_page(offset: str | None = last) -> list[ObjectMeta] | None:
                # Begun anew at each attempt: a listing that failed is at its end, as if empty.
                stream = obstore.list(self._store, prefix or None, offset=offset, chunk_size=1000)
                return next((list(page) for page in stream), None)

            page = self._call("list", first_page)
            if page is None:
                return
            last = page[-1]["path"]
            yield page
            if len(page) < 1000:
                return

    def _call(self, verb: str, request: Callable[[], _T]) -> _T:
        """Send a request, a second time if it got no answer; translate errors."""
        began = time.monotonic()
        while True:
            try:
                return request()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._error(verb, error) from None
                raise Missing from None
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise Conflict from None
            except (exceptions.BaseError, ValueError) as error:
                translated = self._error(verb, error)
                again = isinstance(translated, Unanswered) and verb != "write"
                if not again or time.monotonic() - began > ATTEMPT_SECONDS + 1:
                    raise translated from None

    def _error(self, verb: str, error: Exception) -> OSError:
        """Return the OSError for an error of obstore, without its source or any header."""
        text = str(error)
        code, status = _CODE.search(text), _STATUS.search(text)
        detail = f" ({code[1]})" if code else f" (HTTP {status[1]})" if status else ""
        if "NoSuchBucket" in text:
            return OSError(errno.ENODEV, f"{self.url}: the bucket does not exist")
        if _is_credentials(text):  # first: the cloud's own address may answer 403
            return PermissionError(errno.EACCES, f"{self.url}: no credentials were found")
        denied = exceptions.PermissionDeniedError, exceptions.UnauthenticatedError
        if isinstance(error, denied) or (status and status[1] in {"401", "403"}):
            return PermissionError(errno.EACCES, f"{self.url}: no permission to {verb}{detail}")
        if isinstance(error, exceptions.InvalidPathError) or "Could not parse path" in text:
            found = _PATH.search(text)
            foreign = f"the object {found[1]!r}" if found else "an object"
            reason = "is not a path: delete or rename it"
            return ForeignName(f"{self.url}: the name of {foreign} {reason}")
        if "TimedOut" in text or "timed out" in text or "Timeout" in text:
            return Unanswered(errno.ETIMEDOUT, f"{self.url}: no answer in time to {verb}")
        if status is None:
            return Unanswered(errno.EIO, f"{self.url}: the store cannot be reached")
        kind = Unreachable if status[1][0] == "5" or status[1] == "429" else OSError
        return kind(errno.EIO, f"{self.url}: the store failed to {verb}{detail}")


def _is_credentials(text: str) -> bool:
    """Return True if obstore searched for credentials, at last at the cloud's own address."""
    paths = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity/")
    return "MissingCredential" in text or any(path in text for path in paths)


def _facts(meta: ObjectMeta) -> Facts:
    modified = meta["last_modified"]
    seconds = int(modified.timestamp())
    return Facts(
        name=meta["path"],
        size=meta["size"],
        time_ns=seconds * 1_000_000_000 + modified.microsecond * 1000,
        tag=Tag(_AND_VERSION.join(filter(None, (meta["e_tag"], meta["version"])))),
    )
