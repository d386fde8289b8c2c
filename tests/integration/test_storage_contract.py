"""The contract of Storage, kept by the file system and by object stores."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from support.flocks import Flocks
from support.object_stores import S3Server

from topwork.bundle.storage.file_storage import FileStorage
from topwork.bundle.storage.object_clock import Clock
from topwork.bundle.storage.storage import ABSENT, HIDDEN, Storage
from topwork.errors import Corrupt, Stale

KINDS = ("file", "memory", "seaweedfs", "moto")
DOCUMENTS = ("serving.json", "draft.json")
SHA = "ab" * 32


@dataclass(frozen=True, slots=True)
class Place:
    """An empty repository that several writers can open."""

    kind: str
    url: str
    environment: Mapping[str, str]
    directory: Path
    locks: Flocks

    def open(self, *, cache: str = "cache") -> Storage:
        """Open it, as a process of the host with this cache would."""
        if self.kind == "file":
            return FileStorage(self.directory / "root")
        from topwork.bundle.storage.buckets import open_bucket

        with mock.patch.dict("os.environ", self.environment):
            return open_bucket(
                self.url,
                locks=self.locks,
                cache_directory=self.directory / cache,
                cache_bytes=10**8,
            )


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return an empty repository of each kind."""
    url, environment = f"memory://{uuid.uuid4().hex}", {}
    if request.param in {"seaweedfs", "moto"}:
        server: S3Server = request.getfixturevalue(request.param)
        url, environment = server.new_url(), server.environment()
    (tmp_path / "root" / "models").mkdir(parents=True)
    return Place(request.param, url, environment, tmp_path, Flocks(tmp_path / "locks"))


@pytest.fixture
def storage(place: Place) -> Storage:
    """Return an empty storage of each kind."""
    return place.open()


@pytest.fixture
def objects(place: Place) -> Place:
    """Return an empty repository of each kind of object store."""
    if place.kind == "file":
        pytest.skip("a file system has no conditional writes")
    return place


def skip_moto(place: Place) -> None:
    """Skip races on moto, whose threads compare and write in two steps."""
    if place.kind == "moto":
        pytest.skip("moto's conditional writes are not atomic")


def digest(content: bytes) -> str:
    """Return the sha256."""
    return hashlib.sha256(content).hexdigest()


def make_model(storage: Storage, model: str = "colours") -> str:
    """Make a model that serves, and return its key."""
    storage.create(f"models/{model}", {"draft.json": b"draft"})
    storage.write(f"models/{model}/serving.json", b"1")
    return f"models/{model}"


def test_write_and_read_a_file(storage: Storage) -> None:
    """A file is read as it was written last."""
    assert not storage.exists("models/m/review.json")
    storage.write("models/m/review.json", b"1")
    storage.write("models/m/review.json", b"two")
    assert storage.read("models/m/review.json") == b"two"
    with storage.open("models/m/review.json") as file:
        file.seek(1)
        assert file.read() == b"wo"
    assert storage.sizes(["models/m/review.json", "models/m/none.json"]) == {
        "models/m/review.json": 3
    }


@pytest.mark.parametrize(
    "key", ["models/m/serving.json", "models/m/1/manifest.json", f"exemplars/{SHA}.npz"]
)
def test_missing_file_is_corrupt(storage: Storage, key: str) -> None:
    """A file that does not exist is Corrupt, named by its key."""
    for read in (
        storage.read,
        storage.read_tagged,
        storage.open,
        lambda name: storage.read_verified(name, SHA),
    ):
        with pytest.raises(Corrupt, match=f"{key} is missing"):
            read(key)
    assert storage.entry(key) is None
    assert not storage.delete(key)


def test_read_verified_rejects_another_digest(storage: Storage) -> None:
    """Content with another sha256 is Corrupt, and is not cached as what was expected."""
    storage.write(f"images/{SHA}", b"content")
    with pytest.raises(Corrupt, match="it was changed"):
        storage.read_verified(f"images/{SHA}", SHA)
    assert storage.read_verified(f"images/{SHA}", digest(b"content")) == b"content"
    assert storage.local(f"images/{SHA}", digest(b"content")).read_bytes() == b"content"


def test_entry_of_a_file_has_size_and_time(storage: Storage) -> None:
    """An entry has the length and the time of the storage's clock."""
    storage.write("models/m/1/report.html", b"12345")
    entry = storage.entry("models/m/1/report.html")
    assert entry is not None
    assert entry.size == 5
    assert abs(entry.time - storage.now()) < 2.5


def test_files_lists_files_alone(storage: Storage) -> None:
    """``files`` has the files directly in a directory, ``directories`` the directories."""
    make_model(storage)
    storage.write("models/colours/review.json", b"123")
    storage.write(f"models/colours/review/{SHA}.npz", b"1")
    storage.create("models/colours/2", {"head.onnx": b"head", "manifest.json": b"{}"})
    storage.create("models/colours/10", {"head.onnx": b"head", "manifest.json": b"{}"})
    storage.create("models/colours/evaluations/flowers", {"set.json": b"{}"})
    sizes = {name: entry.size for name, entry in storage.files("models/colours").items()}
    assert sizes == {"draft.json": 5, "serving.json": 1, "review.json": 3}
    assert storage.directories("models/colours") == ["10", "2", "evaluations", "review"]
    assert storage.directories("models/colours/evaluations") == ["flowers"]
    assert storage.directories("models") == ["colours"]
    assert set(storage.files("models/colours/2")) == {"head.onnx", "manifest.json"}
    assert storage.files("models/none") == {}
    assert storage.directories("models/none") == []


def test_names_with_a_leading_dot_are_not_listed(storage: Storage) -> None:
    """Names that begin with a dot are in no listing, but those of hidden models."""
    make_model(storage)
    for name in (".notes", f"{HIDDEN}notes", ".git/config", "review/.part", f"review/{SHA}.npz"):
        storage.write(f"models/colours/{name}", b"foreign")
    storage.write(".cache/file", b"foreign")
    assert set(storage.files("models/colours")) == {"draft.json", "serving.json"}
    assert set(storage.files("models/colours/review")) == {f"{SHA}.npz"}
    assert storage.directories("models/colours") == ["review"]
    assert ".cache" not in storage.directories("")


def test_sizes_of_many_files(storage: Storage) -> None:
    """``sizes`` has the files that exist, also pointers, and no directory's commit."""
    make_model(storage)
    keys = [f"images/{number:064}" for number in range(30)]
    for length, key in enumerate(keys):
        storage.put_blob(key, b"x" * length)
    missing = [f"exemplars/{SHA}.npz", "models/none/serving.json", f"{keys[0]}/x"]
    found = storage.sizes(["models/colours/serving.json", *missing, *keys])
    assert found == {"models/colours/serving.json": 1, **{key: n for n, key in enumerate(keys)}}
    assert storage.sizes([]) == {}


def test_open_reads_parts_of_a_file(storage: Storage) -> None:
    """An open file is read and sought, and stays as it was while another replaces it."""
    storage.write("models/m/1/examples.npz", b"0123456789")
    with storage.open("models/m/1/examples.npz") as file:
        assert file.seekable()
        assert file.read(2) == b"01"
        storage.write("models/m/1/examples.npz", b"other")
        assert file.seek(-2, 2) == 8
        assert file.read() == b"89"
    with storage.open("models/m/1/examples.npz") as file:
        assert file.read() == b"other"


def test_write_at_replaces_files_of_all_names(storage: Storage) -> None:
    """A file system sets the time of any file; an object store that of ``.gone`` alone."""
    key = "models/colours/review/x.npz"
    storage.write_at(key, b"1", 1_700_000_000_123_456_000)
    storage.write_at(key, b"2", 1_600_000_000_123_456_000)
    assert storage.read(key) == b"2"
    entry = storage.files("models/colours/review")["x.npz"]
    is_set = entry.time_ns == 1_600_000_000_123_456_000
    assert is_set == isinstance(storage, FileStorage)


def test_write_at_sets_the_time(storage: Storage) -> None:
    """A file with a time of its own has it in listings, and is replaced and deleted as others."""
    make_model(storage)
    key = f"models/colours/review/{SHA}.gone"
    assert not storage.exists(key)
    storage.write_at(key, b"", 1_700_000_000_123_456_000)
    storage.write_at(key, b"", 1_600_000_000_123_456_000)
    entry = storage.entry(key)
    assert entry is not None
    assert entry.time_ns == 1_600_000_000_123_456_000
    assert storage.files("models/colours/review") == {f"{SHA}.gone": entry}
    assert storage.exists(key)
    assert storage.delete(key)
    assert not storage.exists(key)
    assert storage.files("models/colours/review") == {}


def test_create_makes_a_directory_once(storage: Storage) -> None:
    """A directory that exists is not replaced, and has its first content."""
    make_model(storage)
    storage.create("models/colours/1", {"head.onnx": b"a", "manifest.json": b"first"})
    for content in (b"second", b"third"):
        with pytest.raises(FileExistsError):
            storage.create("models/colours/1", {"head.onnx": b"a", "manifest.json": content})
    assert storage.read("models/colours/1/manifest.json") == b"first"
    entry = storage.entry("models/colours/1")
    assert entry is not None
    assert entry.size == 6
    with pytest.raises(FileExistsError):
        storage.create("models/colours", {"draft.json": b"other"})
    assert storage.read("models/colours/draft.json") == b"draft"


def test_racing_creators_of_a_directory_one_wins(place: Place) -> None:
    """Of two writers that create a directory, one succeeds, and all files are its own."""
    skip_moto(place)
    storages = [place.open(), place.open()]
    make_model(storages[0])
    for number in range(1, 9):

        def create(writer: int, number: int = number) -> bool:
            files = {"head.onnx": b"%d" % writer, "manifest.json": b"manifest %d" % writer}
            with contextlib.suppress(FileExistsError):
                storages[writer].create(f"models/colours/{number}", files)
                return True
            return False

        with ThreadPoolExecutor(2) as pool:
            won = [*pool.map(create, range(2))]
        assert sorted(won) == [False, True], number
        winner = b"%d" % won.index(True)
        assert storages[0].read(f"models/colours/{number}/head.onnx") == winner
        assert storages[0].read(f"models/colours/{number}/manifest.json").endswith(winner)


def test_make_directory_lets_a_model_exist(storage: Storage) -> None:
    """The directory of a model can be locked before it has a file."""
    assert not storage.exists("models/colours")
    with pytest.raises(FileNotFoundError), storage.locked("models/colours"):
        pass
    for _ in range(2):
        storage.make_directory("models/colours")
    assert storage.exists("models/colours")
    with storage.locked("models/colours"):
        storage.create("models/colours/1", {"manifest.json": b"{}"})
    assert storage.directories("models") == ["colours"]


def test_delete_a_directory(storage: Storage) -> None:
    """A deleted directory is gone with its files, and its name is free."""
    make_model(storage)
    for content in (b"first", b"second"):
        storage.create("models/colours/1", {"head.onnx": content, "manifest.json": content})
        assert storage.delete("models/colours/1")
        assert not storage.delete("models/colours/1")
        assert not storage.exists("models/colours/1")
        assert storage.directories("models/colours") == []
        assert storage.files("models/colours/1") == {}


def test_hide_and_unhide(storage: Storage) -> None:
    """A hidden model has another name, its files under it, and the time at which it was hidden."""
    make_model(storage)
    storage.create("models/colours/1", {"manifest.json": b"manifest"})
    with storage.locked("models"), storage.locked("models/colours"):
        storage.hide("models/colours")
    hidden = f"models/{HIDDEN}colours"
    assert storage.directories("models") == [f"{HIDDEN}colours"]
    assert not storage.exists("models/colours")
    assert not storage.exists("models/colours/serving.json")
    assert storage.entry("models/colours") is None
    assert storage.directories("models/colours") == []
    assert storage.files("models/colours") == {}
    assert storage.stamps(DOCUMENTS, ()) == {}
    with pytest.raises(FileNotFoundError), storage.locked("models/colours"):
        pass
    entry = storage.entry(hidden)
    assert entry is not None
    assert abs(entry.time - storage.now()) < 2.5
    assert storage.read(f"{hidden}/serving.json") == b"1"
    assert storage.read(f"{hidden}/1/manifest.json") == b"manifest"
    assert storage.directories(hidden) == ["1"]
    assert set(storage.files(hidden)) == {"draft.json", "serving.json"}
    storage.unhide("models/colours")
    assert storage.directories("models") == ["colours"]
    assert storage.read("models/colours/serving.json") == b"1"
    assert storage.entry(hidden) is None


def test_delete_a_hidden_model(storage: Storage) -> None:
    """The files of a hidden model are deleted, and its name is free."""
    make_model(storage)
    storage.create("models/colours/1", {"manifest.json": b"manifest"})
    storage.hide("models/colours")
    assert storage.delete(f"models/{HIDDEN}colours")
    assert storage.directories("models") == []
    assert not storage.delete(f"models/{HIDDEN}colours")
    make_model(storage)
    assert storage.directories("models/colours") == []


def test_stamps_change_with_the_documents(place: Place) -> None:
    """Another process sees each change of a pointer: of new, changed, hidden and shown models."""
    writer, reader = place.open(), place.open(cache="other")
    make_model(writer, "a")
    writer.create("models/b", {"draft.json": b"draft"})
    first = reader.stamps(DOCUMENTS, ())
    assert set(first) == {"a", "b"}
    assert None not in first.values()
    assert reader.stamps(DOCUMENTS, ()) == first
    writer.write("models/a/serving.json", b"2")
    second = reader.stamps(DOCUMENTS, ())
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    writer.write("models/b/serving.json", b"1")
    assert reader.stamps(DOCUMENTS, (), only="b")["b"] != first["b"]
    assert reader.read("models/a/serving.json") == b"2"
    writer.hide("models/a")
    assert set(reader.stamps(DOCUMENTS, ())) == {"b"}
    writer.unhide("models/a")
    assert reader.stamps(DOCUMENTS, ())["a"] == second["a"]
    assert reader.stamps(["review.json"], ()) == {}


def test_read_sees_the_newest_document(place: Place) -> None:
    """A reader with a cache returns what another process wrote last."""
    writer, reader = place.open(), place.open(cache="other")
    make_model(writer)
    for number in range(20):
        content = b"%d" % number
        writer.write("models/colours/serving.json", content)
        assert reader.read("models/colours/serving.json") == content


def test_blobs_are_refreshed_and_deleted(place: Place) -> None:
    """A refreshed blob has another time, and a deletion that saw the earlier time is refused."""
    storage = place.open()
    key = f"exemplars/{SHA}.npz"
    assert storage.refresh([key, f"backbones/{SHA}"]) == {key, f"backbones/{SHA}"}
    storage.put_blob(key, b"shard")
    storage.create(f"backbones/{SHA}", {"backbone.onnx": b"graph", "backbone.json": b"{}"})
    before = storage.refreshed("exemplars")[f"{SHA}.npz"]
    assert before.size == 5
    assert set(storage.refreshed("backbones")) == {SHA}
    assert storage.refresh([key, f"backbones/{SHA}"]) == set()
    after = place.open().refreshed("exemplars")[f"{SHA}.npz"]
    assert after.time_ns != before.time_ns
    assert not storage.delete_blob(key, before.time_ns)
    with storage.holding([key, f"images/{SHA}"]) as missing:
        assert missing == {f"images/{SHA}"}
    assert not storage.delete_blob(key, after.time_ns)
    backbone = storage.refreshed("backbones")[SHA]
    assert storage.delete_blob(f"backbones/{SHA}", backbone.time_ns)
    assert storage.refreshed("backbones") == {}
    assert storage.delete_blob(key, storage.refreshed("exemplars")[f"{SHA}.npz"].time_ns)
    assert not storage.exists(key)


def test_held_blobs_are_not_deleted(place: Place) -> None:
    """A deletion waits while another process holds blobs, and then sees the refresh."""
    holder, collector = place.open(), place.open()
    key = f"images/{SHA}"
    holder.put_blob(key, b"image")
    seen = collector.refreshed("images")[SHA].time_ns
    deleted: list[bool] = []
    with holder.holding([key]):
        thread = threading.Thread(
            target=lambda: deleted.append(collector.delete_blob(key, seen)), daemon=True
        )
        thread.start()
        thread.join(0.2)
        assert not deleted
    thread.join(30)
    assert deleted == [False]
    assert holder.exists(key)


def test_nothing_is_abandoned_by_writers_that_ended(storage: Storage) -> None:
    """``abandoned`` lists nothing of what finished writers made."""
    make_model(storage)
    storage.create("models/colours/1", {"head.onnx": b"a", "manifest.json": b"{}"})
    storage.create(f"backbones/{SHA}", {"backbone.onnx": b"graph", "backbone.json": b"{}"})
    storage.refresh([f"backbones/{SHA}"])
    storage.create("models/colours/evaluations/flowers", {"set.json": b"{}"})
    assert storage.abandoned(age=-10) == {}


# Object stores alone


def test_local_replaces_a_damaged_file_if_asked_again(objects: Place) -> None:
    """A damaged file of the cache is fetched again with ``again``, for all processes."""
    storage = objects.open()
    key = f"images/{digest(b'content')}"
    storage.put_blob(key, b"content")
    path = storage.local(key, digest(b"content"))
    path.write_bytes(b"damaged")
    assert storage.local(key, digest(b"content")).read_bytes() == b"damaged"
    assert storage.local(key, digest(b"content"), again=True).read_bytes() == b"content"
    assert objects.open().local(key, digest(b"content")).read_bytes() == b"content"
    path.write_bytes(b"damaged")
    assert storage.read_verified(key, digest(b"content")) == b"content"


def test_holding_misses_a_backbone_without_its_commit(objects: Place) -> None:
    """A backbone whose writer died is missing for ``holding``, and for deletion."""
    storage = objects.open()
    storage.create(f"backbones/{SHA}", {"backbone.onnx": b"graph", "backbone.json": b"{}"})
    storage.write(f"backbones/{'cd' * 32}/backbone.onnx", b"graph")
    keys = [f"backbones/{SHA}", f"backbones/{'cd' * 32}"]
    graph = storage.entry(f"{keys[1]}/backbone.onnx")
    assert graph is not None
    assert not storage.delete_blob(keys[1], graph.time_ns)
    assert storage.exists(f"{keys[1]}/backbone.onnx")
    with storage.holding(keys) as missing:
        assert missing == {keys[1]}
    assert set(storage.refreshed("backbones")) == {SHA}


def test_conditional_write_rejects_a_changed_file(objects: Place) -> None:
    """A write with an old tag is Stale and changes nothing; so is one of a file that exists."""
    first, second = objects.open(), objects.open()
    make_model(first)
    key = "models/colours/serving.json"
    content, tag = second.read_tagged(key)
    assert content == b"1"
    first.write(key, b"2", expected=tag)
    with pytest.raises(Stale):
        second.write(key, b"3", expected=tag)
    with pytest.raises(Stale):
        second.write(key, b"3", expected=ABSENT)
    assert second.read(key) == b"2"


def test_racing_conditional_writers_one_wins(objects: Place) -> None:
    """Of eight writers with the same tag exactly one succeeds, and its bytes are stored."""
    skip_moto(objects)
    storage = objects.open()
    make_model(storage)
    key = "models/colours/serving.json"
    for turn in range(10):
        tag = storage.read_tagged(key)[1]

        def write(writer: int, turn: int = turn, tag: object = tag) -> bool:
            with contextlib.suppress(Stale):
                storage.write(key, b"%d by %d" % (turn, writer), expected=tag)  # type: ignore[arg-type]
                return True
            return False

        with ThreadPoolExecutor(8) as pool:
            won = [*pool.map(write, range(8))]
        assert won.count(True) == 1
        assert storage.read(key) == b"%d by %d" % (turn, won.index(True))


def crash_after(storage: Storage, puts: int) -> Callable[[], None]:
    """Let the process of a writer die after some objects; return how to let it live."""
    original = storage._objects.put  # type: ignore[attr-defined]
    left = [puts]

    def put(name: str, content: bytes, **options: object) -> None:
        if not left[0]:
            raise SystemExit
        left[0] -= 1
        original(name, content, **options)

    storage._objects.put = put  # type: ignore[attr-defined]
    return lambda: setattr(storage._objects, "put", original)  # type: ignore[attr-defined]


def test_crashed_creator_leaves_no_directory(objects: Place) -> None:
    """What a dead writer of a directory left is invisible, and is deleted when it is old."""
    storage = objects.open()
    make_model(storage)
    revive = crash_after(storage, 1)
    with pytest.raises(SystemExit):
        storage.create("models/colours/1", {"head.onnx": b"dead", "manifest.json": b"dead"})
    revive()
    crash_after(storage, 2)
    with pytest.raises(SystemExit):
        storage.create("models/copy", {"1/manifest.json": b"{}", "draft.json": b"draft"})
    storage = objects.open()
    assert storage.directories("models/colours") == []
    assert storage.directories("models") == ["colours"]
    assert not storage.exists("models/colours/1")
    assert storage.entry("models/copy") is None
    with pytest.raises(FileExistsError):  # its writer may be alive
        storage.create("models/colours/1", {"head.onnx": b"new", "manifest.json": b"new"})
    assert storage.abandoned() == {}
    left = storage.abandoned(age=-10)
    sizes = {key: entry.size for key, entry in left.items()}
    assert sizes == {"models/colours/1": len(b"dead"), "models/copy": len(b"{}draft")}
    assert all(abs(entry.time - storage.now()) < 10 for entry in left.values())
    for key in left:
        assert not storage.delete_abandoned(key)
        assert storage.delete_abandoned(key, age=-10)
        assert not storage.delete_abandoned(key, age=-10)
    assert storage.abandoned(age=-10) == {}
    storage.create("models/colours/1", {"head.onnx": b"new", "manifest.json": b"new"})
    storage.create("models/copy", {"draft.json": b"draft"})
    assert storage.directories("models/copy") == []


def test_create_finishes_an_old_leftover(objects: Place) -> None:
    """A directory whose writer died long ago can be created, with the new content alone."""
    storage = objects.open()
    make_model(storage)
    crash_after(storage, 1)
    with pytest.raises(SystemExit):
        storage.create("models/colours/1", {"head.onnx": b"dead", "manifest.json": b"dead"})
    storage = objects.open()
    later = time.time() + 3600
    with mock.patch.object(Clock, "now", return_value=later):
        storage.create("models/colours/1", {"head.onnx": b"new", "manifest.json": b"new"})
    assert storage.read("models/colours/1/head.onnx") == b"new"


def test_lost_lock_raises(objects: Place) -> None:
    """A writer whose lock was lost gets an OSError after its block."""
    storage = objects.open()
    make_model(storage)
    with pytest.raises(OSError, match="lock was lost"), storage.locked("models/colours"):
        objects.locks.lost = True


def test_old_markers_are_deleted(objects: Place) -> None:
    """Markers of refreshes are deleted after a day; the blobs remain."""
    storage = objects.open()
    key = f"images/{SHA}"
    storage.put_blob(key, b"image")
    storage.refresh([key])
    later = time.time() + 86400 + 10
    assert storage.abandoned(age=-10) == {}
    with mock.patch.object(Clock, "now", return_value=later):
        (marker,) = storage.abandoned()
        assert storage.delete_abandoned(marker)
    assert set(storage.refreshed("images")) == {SHA}


def test_foreign_files_harm_nothing(objects: Place) -> None:
    """Files that others put into the prefix are not taken for those of a repository."""
    storage = objects.open()
    make_model(storage)
    for name in (
        "notes.txt",
        "pointers/readme",
        "models/readme",
        "models/x/y/z.txt",
        "models/y/notes.txt",
        "models/colours/evaluations/notes/a.txt",
        "backbones/notes/a.txt",
        "refreshed/x",
    ):
        storage._objects.put(name, b"foreign")  # type: ignore[attr-defined]
    assert storage.directories("models") == ["colours"]
    assert set(storage.stamps(DOCUMENTS, ())) == {"colours"}
    storage.put_blob(f"images/{SHA}", b"image")
    assert set(storage.refreshed("images")) == {SHA}
    assert not storage.exists("models/x")
    assert storage.abandoned(age=-10) == {}
    assert not storage.delete_abandoned("models/x", age=-10)


def test_more_than_a_page_of_models(objects: Place) -> None:
    """All models are listed, also if one answer of the store has only a thousand objects."""
    storage = objects.open()
    store = storage._objects  # type: ignore[attr-defined]
    models = [f"m{number:04}" for number in range(700)]
    store.parallel(lambda model: store.put(f"pointers/{model}/made", b""), models)
    store.parallel(lambda model: store.put(f"pointers/{model}/serving.json", b"1"), models)
    assert storage.directories("models") == models
    assert sorted(storage.stamps(DOCUMENTS, ())) == models
