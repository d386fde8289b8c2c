"""Files in buckets of object stores by URL: found by pattern, read one by one, written whole.

Both command lines read inputs and write results with it. obstore is imported at the first URL;
repositories in buckets have a storage of their own, ``topwork.storage``.
"""

from __future__ import annotations

import fnmatch
import mmap
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from topwork.errors import ImageError, InvalidInput
from topwork.printable import printable
from topwork.storage.location import SCHEMES

if TYPE_CHECKING:
    from topwork.bucket_objects import Bucket

UPLOAD_SECONDS = 300.0
"""Raising it saves the result of a long run from a longer outage of the store."""

PAUSE_SECONDS = 2.0
"""Pause between such attempts."""

_MAGIC = re.compile(r"[*?\[]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_bucket_url(text: object) -> bool:
    """Return True for a URL such as ``s3://bucket/photos/*.jpg``."""
    return isinstance(text, str) and text.partition("://")[0] in SCHEMES and "://" in text


@dataclass(frozen=True, slots=True)
class BucketFile:
    """An object, as a listing has it."""

    url: str
    size: int
    """Bytes."""
    objects: Bucket

    def read(self, *, most_bytes: int) -> bytes:
        """Return the content. Raises ImageError if it is too large, or cannot be read."""
        from topwork.storage.bucket.objects import Missing

        content, size = b"", self.size
        if size <= most_bytes:
            try:
                content = read_object(self.objects, split(self.url)[1])
            except Missing:
                raise ImageError("the object cannot be read: it does not exist") from None
            except OSError as error:
                raise ImageError(f"the object cannot be read: {error.strerror}") from error
            size = len(content)
        if size > most_bytes:
            raise ImageError(
                f"the object has {size} bytes; the limit is {most_bytes}", reason="IMAGE_TOO_LARGE"
            )
        return content


@dataclass(frozen=True, slots=True)
class Found:
    """Files that a URL stands for."""

    files: Sequence[BucketFile]
    """Sorted by URL."""
    is_folder: bool
    """True if the URL is that of a folder, and the files are all below it."""


def find(url: str, *, field: str) -> Found:
    """Return the object at a URL, the objects that match its pattern, or all below a folder.

    ``*``, ``?`` and ``[...]`` match within a name, ``**`` folders at any depth; as in a shell, they
    match no name that begins with a dot. All objects below the folder before the first of them are
    listed. Raises InvalidInput about ``field`` if there are none, or the bucket cannot be read.
    """
    root, key = split(url, field=field)
    objects = open_bucket(root, field=field)
    with plain_errors(field):
        if key and not key.endswith("/") and (facts := objects.head(key)) is not None:
            return Found((BucketFile(url, facts.size, objects),), is_folder=False)
        segments = key.strip("/").split("/") if key.strip("/") else []
        plain = next((at for at, each in enumerate(segments) if _MAGIC.search(each)), len(segments))
        listed = sorted((f.name, f.size) for f in objects.listed("/".join(segments[:plain])))
    parents = {name.rpartition("/")[0] for name, _ in listed}
    patterns = [_compiled(segment) for segment in segments[plain:]]
    files = tuple(
        BucketFile(f"{root}/{name}", size, objects)
        for name, size in listed
        # A console of a store makes an empty object for a folder.
        if (size or name not in parents)
        and (not patterns or _matches(name.split("/")[plain:], patterns))
    )
    if not files:
        what = "nothing matches the pattern" if patterns else "there is no object, or folder,"
        raise InvalidInput(f"{what} {printable(url)}", field=field)
    return Found(files, is_folder=not patterns)


@contextmanager
def new_object(url: str, *, field: str) -> Iterator[BinaryIO]:
    """Yield a temporary file that is uploaded when the block succeeds, with one request.

    Before, the permission to write is checked, without writing. On any error there is no object,
    or the former one. Raises InvalidInput about ``field``.
    """
    root, name = split(url, field=field)
    if not name or name.endswith("/"):
        raise InvalidInput(f"{printable(url)} is a folder, not a file", field=field)
    objects = open_bucket(root, field=field)
    with plain_errors(field):
        _check_write(objects, name)
    with tempfile.TemporaryFile() as file:
        yield cast("BinaryIO", file)
        file.flush()
        with plain_errors(field):
            if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
                _upload(objects, name, b"")
                return
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _upload(objects, name, cast("bytes", mapped))


def split(url: str, *, field: str = "url") -> tuple[str, str]:
    """Return the URL of a bucket, and the name of the object. Raises InvalidInput."""
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    if "@" in bucket:
        raise InvalidInput(
            f"a URL {scheme}:// has no user: credentials come from the environment", field=field
        )
    if not bucket or _MAGIC.search(bucket):
        raise InvalidInput(f"{printable(url)} does not name one bucket", field=field)
    parts = name.removesuffix("/").split("/") if name else []
    if {"", ".", ".."}.intersection(parts) or _CONTROL.search(name):
        raise InvalidInput(
            f"{printable(url)} is not supported: names of objects are paths without empty parts, "
            "'.', '..' and control characters",
            field=field,
        )
    return f"{scheme}://{bucket}", name


def open_bucket(root: str, *, field: str) -> Bucket:
    """Return the objects of a bucket, ``s3://bucket``.

    Credentials, region and endpoint come from the environment, such as AWS_ACCESS_KEY_ID and
    AWS_ENDPOINT_URL. Raises InvalidInput about ``field`` without obstore, or if the environment is
    wrong.
    """
    try:
        from topwork import bucket_objects
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "obstore":
            raise
        scheme = root.partition("://")[0]
        raise InvalidInput(
            f"files in an object store, {scheme}://, need pip install 'topwork[s3]'", field=field
        ) from None
    return bucket_objects.connect(root, field=field)


def read_object(objects: Bucket, name: str) -> bytes:
    """Return the content of an object. Raises ``objects.Missing``, OSError."""
    got = objects.get(name)
    assert got is not None, "it is None only for a given tag"
    return got[0]


def _upload(objects: Bucket, name: str, content: bytes) -> None:
    """Write an object; a store that does not answer is asked again for UPLOAD_SECONDS."""
    from topwork.storage.bucket.objects import Unanswered

    end = time.monotonic() + UPLOAD_SECONDS
    while True:
        try:
            objects.put(name, content)
        except Unanswered:
            if time.monotonic() > end:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def _check_write(objects: Bucket, name: str) -> None:
    """Raise OSError if an object cannot be written, by a request whose condition never holds."""
    from topwork.storage.bucket.objects import Conflict, Missing
    from topwork.storage.storage import Tag

    probe = f"{name}.{uuid.uuid4().hex}"
    try:
        objects.put(probe, b"", expected=Tag('"00000000000000000000000000000000"'))
    except (Conflict, Missing):
        return
    objects.delete([probe])  # the store ignores conditions


@contextmanager
def plain_errors(field: str) -> Iterator[None]:
    """Raise InvalidInput for the OSError of a bucket, whose text is a sentence."""
    from topwork.storage.bucket.objects import Missing

    try:
        yield
    except Missing:  # some stores answer a listing so
        raise InvalidInput("the bucket does not exist", field=field) from None
    except OSError as error:
        raise InvalidInput(printable(error.strerror or str(error)), field=field) from error


def _compiled(segment: str) -> re.Pattern[str] | None:
    """Return the expression of a part of a pattern between slashes; None: folders, ``**``."""
    if segment == "**":
        return None
    hidden = "" if segment.startswith(".") else r"(?!\.)"
    return re.compile(hidden + fnmatch.translate(segment))


def _matches(names: Sequence[str], patterns: Sequence[re.Pattern[str] | None]) -> bool:
    """Return True if the parts of a path match those of a pattern."""
    if not patterns:
        return not names
    first, *others = patterns
    if first is not None:
        return bool(names) and bool(first.match(names[0])) and _matches(names[1:], others)
    visible = next((at for at, name in enumerate(names) if name.startswith(".")), len(names))
    return any(_matches(names[skipped:], others) for skipped in range(visible + 1))
