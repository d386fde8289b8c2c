"""Opening a repository in a bucket: what is wrong with it is said in one sentence."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from support import faulty_proxy, object_stores, tiny
from support.faulty_proxy import ACCEPTED
from support.object_stores import S3Server
from support.pictures import pictures

from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.opening import open_repository
from topwork.errors import Corrupt, InvalidInput
from topwork.storage.bucket.facts import Facts
from topwork.storage.bucket.objects import Objects
from topwork.storage.bucket.opening import open_bucket
from topwork.storage.storage import ForeignName, Storage

KEY = "models/colours/serving.json"


def opened(url: str, environment: dict[str, str], cache: Path, *, writes: bool = False) -> Storage:
    """Open a bucket with this environment alone."""
    with mock.patch.dict("os.environ", environment, clear=True):
        return open_bucket(url, cache_directory=cache, cache_bytes=10**7, writes=writes)


@pytest.mark.parametrize("server", ["seaweedfs", "moto"])
def test_writer_accepts_a_bucket_with_conditional_writes(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The servers of the tests have conditional writes, and the check leaves nothing."""
    running: S3Server = request.getfixturevalue(server)
    url = running.new_url()
    storage = opened(url, running.environment(), tmp_path, writes=True)
    assert storage.directories("") == []
    assert storage.files("probe") == {}


def test_writer_refuses_a_bucket_without_conditional_writes(
    seaweedfs: S3Server, tmp_path: Path
) -> None:
    """A store that ignores conditions is refused when a writer opens it."""
    with faulty_proxy.running(seaweedfs.port) as proxy:
        proxy.rule = lambda request: ACCEPTED if request.method == "PUT" else None
        environment = seaweedfs.environment(port=proxy.port)
        with pytest.raises(InvalidInput, match="ignores the conditions of writes"):
            opened(seaweedfs.new_url(), environment, tmp_path, writes=True)


def test_reader_needs_no_permission_to_write(seaweedfs: S3Server, tmp_path: Path) -> None:
    """Read-only credentials read; a writer is refused when it opens the bucket."""
    url = seaweedfs.new_url()
    writer = opened(url, seaweedfs.environment(), tmp_path / "w")
    writer.create("models/colours", {"serving.json": b"1"})
    environment = seaweedfs.environment(object_stores.READER)
    reader = opened(url, environment, tmp_path / "r")
    assert reader.read(KEY) == b"1"
    assert set(reader.stamps(["serving.json"])) == {"colours"}
    assert abs(reader.now() - time.time()) < 5
    for write in (
        lambda: opened(url, environment, tmp_path, writes=True),
        lambda: reader.write(KEY, b"2"),
    ):
        with pytest.raises(PermissionError, match="no permission to write") as raised:
            write()
        assert url in str(raised.value)
    assert reader.read(KEY) == b"1"


def test_wrong_secret_is_a_permission_error(seaweedfs: S3Server, tmp_path: Path) -> None:
    """Wrong credentials are a PermissionError, without them in the message."""
    environment = seaweedfs.environment(("writer", "not-the-secret"))
    storage = opened(seaweedfs.new_url(), environment, tmp_path)
    with pytest.raises(PermissionError, match="no permission to list") as raised:
        storage.read(KEY)
    assert "not-the-secret" not in str(raised.value)


def test_without_credentials_the_message_says_so(tmp_path: Path) -> None:
    """Without any credentials the message says so, within seconds."""
    environment = {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9", "AWS_REGION": "us-east-1"}
    began = time.monotonic()
    storage = opened("s3://bucket/prefix", environment, tmp_path)
    with pytest.raises(PermissionError, match="no credentials were found"):
        storage.read(KEY)
    assert time.monotonic() - began < 15


def test_missing_bucket_is_named(moto: S3Server, tmp_path: Path) -> None:
    """A bucket that does not exist is no missing file."""
    storage = opened("s3://other/prefix", moto.environment(), tmp_path)
    for read in (lambda: storage.read(KEY), lambda: storage.directories("models")):
        with pytest.raises(OSError, match="s3://other/prefix: the bucket does not exist") as raised:
            read()
        assert raised.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="the bucket does not exist"):
        opened("s3://other/prefix", moto.environment(), tmp_path, writes=True)


def test_unknown_scheme_is_invalid(tmp_path: Path) -> None:
    """A URL of another scheme is refused without its password."""
    with pytest.raises(InvalidInput, match="neither a path nor the URL of a bucket") as raised:
        opened("ftp://user:password@host/x", {}, tmp_path)
    assert "password" not in str(raised.value)


def test_memory_is_shared_by_name(tmp_path: Path) -> None:
    """Buckets in memory have the same files under the same name alone."""
    first, second = (opened(f"memory://{name}", {}, tmp_path) for name in ("same", "same"))
    other = opened("memory://other", {}, tmp_path)
    first.write("models/m/review.json", b"1")
    assert second.read("models/m/review.json") == b"1"
    with pytest.raises(Corrupt):
        other.read("models/m/review.json")


def test_missing_extra_is_named(tmp_path: Path) -> None:
    """Without obstore the message names the extra to install."""
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from pathlib import Path\n"
        "from topwork.storage.bucket.opening import open_bucket\n"
        f"open_bucket('s3://b/p', cache_directory=Path({str(tmp_path)!r}), cache_bytes=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InvalidInput" in done.stderr
    assert "pip install 'topwork[s3]'" in done.stderr


def put_foreign(server: S3Server, url: str, name: str) -> None:
    """Put an object with any name, as a client without checks does."""
    path = urllib.parse.quote(f"{url.removeprefix('s3://')}/{name}")
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/{path}", b"x", method="PUT")
    urllib.request.urlopen(request).close()  # noqa: S310  # http


@pytest.mark.parametrize(
    ("name", "shown"),
    [("review//x", "review//"), ("review/Icon\x01", r"review/Icon\x01"), ("review/../x", "/../")],
)
def test_foreign_object_without_a_path_is_named(
    name: str, shown: str, moto: S3Server, tmp_path: Path
) -> None:
    """A foreign object whose name is no path breaks listings of its directory alone, by name."""
    url = moto.new_url()
    storage = opened(url, moto.environment(), tmp_path)
    storage.create("models/colours", {"serving.json": b"1"})
    storage.create("models/colours/1", {"manifest.json": b"{}"})
    put_foreign(moto, url, "models/colours/folder/")
    put_foreign(moto, url, f"models/colours/{name}")
    assert storage.directories("models") == ["colours"]
    assert storage.directories("models/colours") == ["1", "folder", "review"]
    assert storage.files("models/colours/folder") == {}
    storage.create("models/colours/2", {"manifest.json": b"{}"})
    assert set(storage.stamps(["serving.json"])) == {"colours"}
    failing: list[Callable[[], object]] = [
        lambda: storage.files("models/colours/review"),
        storage.abandoned,
    ]
    for fail in failing:
        with pytest.raises(ForeignName, match=re.escape(shown)) as raised:
            fail()
        assert "is not a path: delete or rename it" in str(raised.value)


def test_key_that_is_no_path_is_named(tmp_path: Path) -> None:
    """A name that is no path is an error at once, not a store that cannot be reached."""
    storage = opened("memory://names", {}, tmp_path)
    for key in ("images//x", "images/\n"):
        with pytest.raises(ForeignName, match=re.escape(repr(key))):
            storage.read(key)


def test_gc_and_fsck_go_on_beside_a_foreign_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If leftovers cannot be listed, gc deletes the rest and says so; fsck notes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    repository = open_repository("memory://foreign", writes=True)
    blue = tiny.embed_pictures({"blue": pictures("blue", 6), "amber": pictures("amber", 6)})
    tiny.publish(repository, "colours", blue)
    orphan = repository.put_image(b"nobody refers to it")
    listed = Objects.listed

    def refuse(objects: Objects, prefix: str) -> Iterator[Facts]:
        if prefix in {"", "models", "models/colours"}:
            raise ForeignName("the name of the object 'models//x' is not a path")
        return listed(objects, prefix)

    monkeypatch.setattr(Objects, "listed", refuse)
    found = collect(repository, spare_seconds=-5)
    assert [removed.path for removed in found.removed] == [f"images/{orphan}"]
    assert any("nothing that crashes left was deleted" in text for text in found.refused)
    problems = check(repository)
    assert [problem.severity for problem in problems] == ["note"]
    assert "'models//x' is not a path" in problems[0].text
    assert repository.revisions("colours") == [1]
