"""Servers, workers and commands on a repository in a bucket, which share only the database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import object_stores, servers, tiny
from support.object_stores import S3Server
from support.pictures import COLOURS, pictures

from topwork import CallFailed, Client
from topwork.bundle.location import ObjectCache
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.local import open_model

LABELS = ("amber", "blue", "crimson")
REQUEST = "6f1c2a52-0d5e-4b43-8f0e-7d0f3f0f4e11"
VIOLETS = [(f"{number}.png", photo) for number, photo in enumerate(pictures("violet", 20))]


def fill(location: str) -> None:
    """Publish the model ``colours`` in a bucket."""
    made = open_repository(location, writes=True)
    exemplars = tiny.embed_pictures({each: pictures(each, 20) for each in LABELS})
    tiny.publish(made, "colours", exemplars)


@pytest.fixture
def url(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Return the URL of a bucket with the model ``colours``."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    location = seaweedfs.new_url()
    fill(location)
    return location


@pytest.fixture
def database(tmp_path: Path) -> str:
    """Return the URL of a database for one host."""
    return f"sqlite:///{tmp_path / 'operations.sqlite'}"


@pytest.fixture
def hosts(url: str, database: str, tmp_path: Path) -> Iterator[list[Client]]:
    """Yield clients of two servers with caches of their own; the first has a worker."""
    with (
        servers.running(url, database=database, cache_directory=str(tmp_path / "1")) as one,
        servers.running(
            url, database=database, cache_directory=str(tmp_path / "2"), worker=False
        ) as two,
        Client(one.address) as first,
        Client(two.address) as second,
    ):
        yield [first, second]


def serves(client: Client, revision: int) -> None:
    """Wait until a server answers with a revision."""
    photo = pictures("violet", 1)
    servers.eventually(lambda: client.classify("colours", photo).revision == revision)


def fitted(repository: Repository, path: Path) -> str:
    """Return the digest of the head of one fit on all pictures, in files."""
    photos = {each: pictures(each, 20) for each in (*LABELS, "violet")}
    serving = repository.manifest("colours", repository.serving("colours"))
    return tiny.publish(
        Repository(path), "all", tiny.embed_pictures(photos), seed=serving.seed
    ).head


def accept(client: Client) -> str | None:
    """Return the name of an operation that adds a class; None: it cannot be stored now."""
    try:
        return client.add_class("colours", "violet", VIOLETS, request_id=REQUEST).name
    except CallFailed as error:
        if (error.code, error.reason) != ("UNAVAILABLE", "STORAGE"):
            raise
        return None


def test_hosts_follow_each_other(hosts: list[Client], url: str, tmp_path: Path) -> None:
    """A class that one server accepts serves on both, with the head of a fit on all pictures."""
    first, second = hosts
    *_, finished = second.watch(second.add_class("colours", "violet", VIOLETS).name)
    assert finished.result().revision.revision == 2
    serves(first, 2)
    serves(second, 2)
    repository = open_repository(url)
    assert repository.manifest("colours", 2).head == fitted(repository, tmp_path / "files")
    assert [each for each in check(repository) if each.severity == "error"] == []
    first.rollback("colours")
    serves(second, 1)


def test_models_are_made_deleted_and_restored(hosts: list[Client]) -> None:
    """CreateModel, CopyModel, DeleteModel and UndeleteModel are seen by the other server."""
    first, second = hosts
    first.copy_model("colours", "copy")
    servers.eventually(lambda: "models/copy" in [model.name for model in second.models()])
    second.delete_model("copy")
    servers.eventually(lambda: "models/copy" not in [model.name for model in first.models()])
    first.undelete_model("copy")
    servers.eventually(lambda: "models/copy" in [model.name for model in second.models()])


def test_answers_go_on_while_the_bucket_is_away(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without its bucket answers and refuses uploads; both work again when it is back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    directory = tmp_path / "weed"
    directory.mkdir()
    photo = pictures("blue", 1)
    with ExitStack() as store, ExitStack() as running:
        server = store.enter_context(object_stores.seaweedfs(directory))
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        location = server.new_url()
        fill(location)
        served = running.enter_context(servers.running(location, database=database))
        client = running.enter_context(Client(served.address))
        store.close()
        served.log_entry("repository cannot be read")
        assert client.classify("colours", photo).results[0].predictions[0].label == "blue"
        refused = servers.failure(lambda: client.add_class("colours", "violet", VIOLETS))
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "STORAGE")
        store.enter_context(object_stores.seaweedfs(directory, server.port))
        accepted = servers.eventually(lambda: accept(client))
        *_, finished = client.watch(accepted)
        assert finished.result().revision.revision == 2


def test_gc_keeps_what_is_needed(url: str, database: str, tmp_path: Path) -> None:
    """Old blobs without a reference go; the model still predicts without the cache."""
    repository = open_repository(url, database=database, writes=True)
    orphan = repository.put_image(b"nobody refers to it")
    removed = collect(repository, spare_seconds=-5).removed
    assert [found.path for found in removed] == [f"images/{orphan}"]
    shutil.rmtree(tmp_path / "own")
    (result,) = open_model(url, "colours").predict(pictures("blue", 1))
    assert result.predictions[0].label == "blue"


def test_a_damaged_cache_is_filled_again(url: str, tmp_path: Path) -> None:
    """A cached file that was changed is not used: its sha256 is not that of the manifest."""
    cache = ObjectCache(directory=tmp_path / "cache")
    repository = open_repository(url, cache=cache)
    manifest = repository.manifest("colours", 1)
    head, shards = repository.head(manifest), repository.exemplars(manifest.exemplars)
    for path in cache.directory.rglob("*"):
        if path.is_file():
            path.write_bytes(b"x" + path.read_bytes()[1:])
    again = open_repository(url, cache=cache)
    assert again.head(manifest) == head
    assert (again.exemplars(manifest.exemplars).embeddings == shards.embeddings).all()
    assert len(COLOURS) > len(LABELS)
