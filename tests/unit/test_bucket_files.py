"""Patterns of URLs, and reading and writing of objects, on an object store in memory."""

from __future__ import annotations

import glob
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'topwork[s3]'")

import obstore
from obstore.store import MemoryStore

import topwork
from topwork import bucket_files
from topwork.bucket_files import find, is_bucket_url, new_object
from topwork.errors import ImageError, InvalidInput
from topwork.storage.bucket.objects import Objects, Unanswered

NAMES = [
    "photos/a.jpg", "photos/b.png", "photos/b1.png", "photos/.hidden.jpg", "photos/deep/a.jpg",
    "photos/deep/er/a.jpg", "photos/deep/.dir/a.jpg", "photos/[x].jpg", "photos/x.jpg",
    "photos/A.JPG", "photos/narrow\u202fspace.jpg", "other/a.jpg", "top.jpg",
]  # fmt: skip


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """Return the store of all buckets."""
    made = MemoryStore()

    def open_bucket(root: str, **_: Any) -> Objects:
        return Objects(made, made, root)

    monkeypatch.setattr(bucket_files, "open_bucket", open_bucket)
    return made


@pytest.mark.parametrize(
    "pattern",
    [
        "photos/*.jpg", "photos/*", "photos/**/*.jpg", "**/a.jpg", "*/*.jpg", "**/*", "**",
        "photos/b?.png", "photos/[ab].*", "photos/[!a].*", "photos/.*", "photos/**/er/*", "*",
        "photos/deep/**", "photos/[[]x].jpg", "p*/d*/*/a.jpg", "photos/**/**/a.jpg",
        "photos/**/.*/*", "photos/narrow*.jpg",
    ],
)  # fmt: skip
def test_pattern_matches_like_glob(pattern: str, store: MemoryStore, tmp_path: Path) -> None:
    """The objects that match are the files that Python's glob finds in the same tree."""
    for name in NAMES:
        obstore.put(store, name, b"x")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    expected = {
        match
        for match in glob.glob(pattern, root_dir=tmp_path, recursive=True)  # noqa: PTH207
        if (tmp_path / match).is_file()
    }
    found = find(f"s3://bucket/{pattern}", field="images")
    assert {file.url for file in found.files} == {f"s3://bucket/{name}" for name in expected}
    assert [file.url for file in found.files] == sorted(file.url for file in found.files)
    assert expected
    assert not found.is_folder


def test_object_whose_name_is_a_pattern_is_found_by_its_name(store: MemoryStore) -> None:
    """As with files, a pattern that exists is no pattern."""
    for name in NAMES:
        obstore.put(store, name, b"12")
    (file,) = find("s3://bucket/photos/[x].jpg", field="images").files
    assert (file.url, file.size) == ("s3://bucket/photos/[x].jpg", 2)


def test_folder_has_all_objects_below_it(store: MemoryStore) -> None:
    """Empty objects that stand for folders are none of them; other empty objects are."""
    for name, content in (("a/1.jpg", b"x"), ("a/b", b""), ("a/b/2.jpg", b""), ("ab/3.jpg", b"x")):
        obstore.put(store, name, content)
    for url in ("gs://bucket/a", "gs://bucket/a/"):
        found = find(url, field="images")
        assert [file.url for file in found.files] == [
            "gs://bucket/a/1.jpg",
            "gs://bucket/a/b/2.jpg",
        ]
        assert found.is_folder
    assert len(find("gs://bucket", field="images").files) == 3


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/photos/*.gif", "nothing matches the pattern s3://bucket/photos/"),
        ("s3://bucket/none", "there is no object, or folder, s3://bucket/none"),
        ("s3://", "s3:// does not name one bucket"),
        ("s3://b*/x", "does not name one bucket"),
        ("s3://key:secret@bucket/x", "a URL s3:// has no user"),
        ("s3://bucket/a//b", "s3://bucket/a//b is not supported: names of objects are paths"),
        ("s3://bucket/../b", "is not supported"),
        ("s3://bucket/a\x1b", r"a.u001b is not supported"),
    ],
)
def test_url_that_stands_for_nothing_is_refused(url: str, message: str, store: MemoryStore) -> None:
    """One sentence each, without the secret."""
    obstore.put(store, "photos/a.jpg", b"x")
    with pytest.raises(InvalidInput, match=message.replace("*", r"\*")) as caught:
        find(url, field="images")
    assert "secret" not in str(caught.value)
    assert caught.value.field == "images"


def test_object_is_read_up_to_the_limit(store: MemoryStore) -> None:
    """A larger object is not read; one that has grown or is gone is an error of its own."""
    obstore.put(store, "a", b"12345")
    (file,) = find("s3://bucket/a", field="images").files
    assert file.read(most_bytes=5) == b"12345"
    with pytest.raises(ImageError, match="the object has 5 bytes; the limit is 4"):
        file.read(most_bytes=4)
    obstore.put(store, "a", b"123456")
    with pytest.raises(ImageError, match="the object has 6 bytes; the limit is 5"):
        file.read(most_bytes=5)
    obstore.delete(store, "a")
    with pytest.raises(ImageError, match="the object cannot be read: it does not exist"):
        file.read(most_bytes=9)
    with pytest.raises(ImageError, match="the object has 5 bytes"):  # without a request
        file.read(most_bytes=4)


@pytest.mark.parametrize("content", [b"", b"new", bytes(3 << 20)])
def test_new_object_is_written_at_the_end(store: MemoryStore, content: bytes) -> None:
    """Before, there is the former object; the check of permission leaves nothing."""
    obstore.put(store, "a/part", b"former")
    with new_object("s3://bucket/a/part", field="out") as file:
        file.write(content)
        assert obstore.get(store, "a/part").bytes() == b"former"
    assert obstore.get(store, "a/part").bytes() == content
    assert [meta["path"] for page in obstore.list(store) for meta in page] == ["a/part"]


def test_upload_outlives_an_outage(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a long run is not lost by a store that does not answer for a while."""
    attempts: list[str] = []
    put = Objects.put

    def unanswered(self: Objects, name: str, content: bytes, **options: Any) -> None:
        if name == "part":
            attempts.append(name)
            if len(attempts) < 3:
                raise Unanswered(5, "s3://bucket: no answer in time to write")
        put(self, name, content, **options)

    monkeypatch.setattr(Objects, "put", unanswered)
    monkeypatch.setattr(bucket_files, "PAUSE_SECONDS", 0)
    with new_object("s3://bucket/part", field="out") as file:
        file.write(b"result")
    assert obstore.get(store, "part").bytes() == b"result"
    monkeypatch.setattr(bucket_files, "UPLOAD_SECONDS", -1)
    attempts.clear()
    with (
        pytest.raises(InvalidInput, match="no answer in time to write"),
        new_object("s3://bucket/part", field="out"),
    ):
        pass
    assert attempts == ["part"]


def fail(file: BinaryIO) -> None:
    """Write, then raise an error."""
    file.write(b"half")
    raise OSError("full")


def test_failed_block_writes_no_object(store: MemoryStore) -> None:
    """There is no object, and the error is the block's."""
    with pytest.raises(OSError, match="full"), new_object("s3://bucket/part", field="out") as file:
        fail(file)
    assert not [*obstore.list(store)]
    with (
        pytest.raises(InvalidInput, match="s3://bucket/ is a folder"),
        new_object("s3://bucket/", field="out"),
    ):
        pass


def test_obstore_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the message names the extra."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "topwork.bucket_objects", raising=False)
    monkeypatch.delattr(topwork, "bucket_objects", raising=False)
    with pytest.raises(InvalidInput, match=r"s3://, need pip install 'topwork\[s3\]'"):
        find("s3://bucket/*.jpg", field="images")


def test_urls_of_buckets() -> None:
    """Other URLs, and paths, are none."""
    assert [*map(is_bucket_url, ("s3://b/x", "gs://b", "az://b"))] == [True] * 3
    assert not any(map(is_bucket_url, ("http://b/x", "s3:/b", "s3", Path("s3://b"), "memory://b")))
