"""Garbage goes, and nothing else: whatever crashes, races or cannot be read."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import stored
from support.stored import grow_old, image, publish, put_backbone, put_shard

from topwork.bundle import files
from topwork.bundle.files import ABANDONED_AFTER, TEMPORARY, sha256
from topwork.bundle.maintenance import garbage
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import Collected, collect
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound, Unavailable

SEEDED = settings(derandomize=True, database=None, deadline=None, max_examples=40)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return an old repository: see ``stored.repository``."""
    return stored.repository(tmp_path / "repository")


def paths(found: Collected, kind: str) -> list[str]:
    """Return what was removed of a kind."""
    return [one.path for one in found.removed if one.kind == kind]


def images(repository: Repository) -> set[int]:
    """Return the numbers of the images that are stored, of the first 100."""
    digests = repository.stored("images").keys()
    return {number for number in range(100) if sha256(image(number)) in digests}


def tree(root: Path) -> dict[str, bytes]:
    """Return all files below ``root`` but locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def sound(repository: Repository) -> bool:
    """Return whether nothing is wrong."""
    return not [one for one in check(repository) if one.severity == "error"]


# What goes, and what stays


def test_old_revisions_go_with_what_only_they_refer_to(repository: Repository) -> None:
    """With one to keep, the newest and the serving one stay, with their shards and images."""
    found = collect(repository, keep=1)
    assert paths(found, "revision") == ["models/m/1", "models/m/2"]
    assert paths(found, "image") == [f"images/{sha256(image(1))}"]
    assert len(paths(found, "shard")) == 1
    assert not found.refused
    assert repository.revisions("m") == [3, 4]
    assert images(repository) == {2, 3, 4}
    assert sound(repository)
    assert not check(repository)


def test_pinned_revisions_stay(repository: Repository) -> None:
    """A pinned revision stays, with all that it refers to, until it is unpinned."""
    repository.pin("m", 1, pinned=True)
    collect(repository, keep=1)
    assert repository.revisions("m") == [1, 3, 4]
    assert images(repository) == {1, 2, 3, 4}
    repository.pin("m", 1, pinned=False)
    collect(repository, keep=1)
    assert repository.revisions("m") == [3, 4]
    assert images(repository) == {2, 3, 4}


@pytest.mark.parametrize(("keep", "left"), [(2, [3, 4]), (3, [2, 3, 4]), (10, [1, 2, 3, 4])])
def test_the_newest_revisions_stay(keep: int, left: list[int], repository: Repository) -> None:
    """As many of the newest stay as are asked for."""
    collect(repository, keep=keep)
    assert repository.revisions("m") == left


def test_at_least_the_newest_stays(repository: Repository) -> None:
    """To keep none is refused: the number of a deleted revision must not be given again."""
    with pytest.raises(InvalidInput, match="keep is 0"):
        collect(repository, keep=0)


def test_another_models_references_count(repository: Repository) -> None:
    """What one model needs no longer stays while any revision of another refers to it."""
    publish(repository, [put_shard(repository, 1)], model="other")
    grow_old(repository)
    found = collect(repository, keep=1)
    assert paths(found, "revision") == ["models/m/1", "models/m/2"]
    assert images(repository) == {1, 2, 3, 4}


def test_backbones_that_nothing_refers_to_go(repository: Repository) -> None:
    """Exports that a fit tried and did not take go, and those in use stay."""
    tried = put_backbone(repository, 7)
    grow_old(repository)
    assert paths(collect(repository), "backbone") == [f"backbones/{tried}"]
    assert repository.stored("backbones").keys() == {repository.manifest("m", 3).backbone}


def test_what_is_young_stays(repository: Repository) -> None:
    """Nothing goes before its time: somebody may be about to refer to it."""
    put_shard(repository, 8)
    repository.put_image(image(9))
    put_backbone(repository, 7)
    publish(repository, [put_shard(repository, 5)])
    before = tree(repository.root)
    for path in repository.root.rglob("*"):
        os.utime(path, (time.time() - 3000,) * 2)
    assert collect(repository, keep=1).removed == ()
    assert tree(repository.root) == before
    assert collect(repository, keep=1, spare_seconds=2000).removed != ()


def test_a_shard_that_is_young_keeps_its_images(repository: Repository) -> None:
    """Old images stay while a shard that may yet be referred to names them."""
    repository.put_image(image(9))
    grow_old(repository)
    put_shard(repository, 9, put=False)
    assert not collect(repository).removed
    assert 9 in images(repository)


def test_images_of_unfinished_operations_stay(repository: Repository) -> None:
    """What is held stays, however old it is, and so does a shard of it."""
    shard = put_shard(repository, 8)
    put_shard(repository, 9)
    grow_old(repository)
    collect(repository, pending_images=lambda: {sha256(image(8))})
    assert images(repository) == {1, 2, 3, 4, 8}
    assert shard in repository.stored("exemplars")
    assert len(repository.stored("exemplars")) == 5


def test_a_model_that_does_not_serve_yet_stays(repository: Repository) -> None:
    """A fit that published and did not come to serving loses nothing."""
    publish(repository, [put_shard(repository, 5)], model="new")
    grow_old(repository)
    assert not collect(repository, keep=4).removed
    assert repository.revisions("new") == [1]


def test_copies_made_by_hand_keep_what_they_refer_to(repository: Repository) -> None:
    """A folder that is no model's is left alone, and what its revisions refer to stays."""
    models = repository.root / "models"
    shutil.copytree(models / "m", models / "m (before)")
    grow_old(repository)
    collect(repository, keep=1)
    assert (models / "m (before)" / "1" / "manifest.json").exists()
    assert images(repository) == {1, 2, 3, 4}


def test_foreign_files_stay(repository: Repository) -> None:
    """What is not named by a digest is nobody's garbage."""
    for kind in ("images", "exemplars", "backbones", "models"):
        (repository.root / kind / "notes.txt").write_bytes(b"mine")
    (repository.root / "images" / f"{'0' * 64}.npz").write_bytes(b"mine")
    grow_old(repository)
    assert not collect(repository).removed


def test_what_crashes_left_goes(repository: Repository) -> None:
    """Old temporary names go; young ones are somebody's work."""
    left = repository.root / "images" / f"{TEMPORARY}1"
    left.write_bytes(b"half")
    young = repository.root / "models" / "m" / f"{TEMPORARY}2"
    young.mkdir()
    then = time.time() - ABANDONED_AFTER - 60
    os.utime(left, (then, then))
    found = collect(repository)
    assert paths(found, "temporary") == [f"images/{TEMPORARY}1"]
    assert not left.exists()
    assert young.exists()


def test_without_a_time_to_spare_what_the_dead_left_goes(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that a killed process half wrote goes at once; one that is being written stays."""
    model = repository.root / "models" / "m"
    with monkeypatch.context() as until_killed:
        until_killed.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        with suppress(Killed), files.new_directory(model / "5") as left:
            (left / "head.onnx").write_bytes(b"half")
            raise Killed
    with files.new_directory(model / "6") as living:
        assert not paths(collect(repository), "temporary")
        assert paths(collect(repository, spare_seconds=0), "temporary") == [f"models/m/{left.name}"]
        assert living.exists()
    assert not left.exists()


def test_bytes_are_counted(repository: Repository) -> None:
    """The sizes that are said are those by which the repository shrank."""
    before = sum(map(len, tree(repository.root).values()))
    found = collect(repository, keep=1)
    after = sum(map(len, tree(repository.root).values()))
    assert sum(one.size for one in found.removed) == before - after > 0


def test_a_dry_run_says_what_would_go(repository: Repository) -> None:
    """It says exactly what the next run deletes, and changes nothing."""
    put_backbone(repository, 7)
    grow_old(repository)
    before = tree(repository.root)
    said = collect(repository, keep=1, dry_run=True)
    assert tree(repository.root) == before
    assert collect(repository, keep=1) == said
    assert len(said.removed) == 5


def test_a_second_run_finds_nothing(repository: Repository) -> None:
    """After one run there is no more garbage."""
    collect(repository, keep=1)
    assert collect(repository, keep=1) == Collected(removed=(), refused=())


def test_an_empty_repository_has_no_garbage(tmp_path: Path) -> None:
    """A directory that nothing was written to is collected without complaint."""
    assert collect(Repository(tmp_path / "none")) == Collected(removed=(), refused=())


# What cannot be read


@pytest.mark.parametrize("content", [b"{", b"{}", None], ids=["broken", "other", "missing"])
def test_a_manifest_that_cannot_be_read_protects_everything(
    content: bytes | None, repository: Repository
) -> None:
    """Nothing that an unreadable revision might refer to goes, and it is said."""
    path = repository.root / "models" / "m" / "4" / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    put_backbone(repository, 7)
    grow_old(repository)
    found = collect(repository, keep=1)
    assert {one.kind for one in found.removed} == {"revision"}
    assert [text for text in found.refused if "models/m/4/manifest.json" in text]
    assert images(repository) == {1, 2, 3, 4}


def test_a_newer_manifest_protects_everything(repository: Repository) -> None:
    """A revision that newer software wrote may refer to more than this one knows."""
    path = repository.root / "models" / "m" / "4" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 3', b'"schema": 4'))
    (text,) = collect(repository, keep=1).refused
    assert "schema 4" in text
    assert images(repository) == {1, 2, 3, 4}


def test_a_broken_pointer_protects_its_models_revisions(repository: Repository) -> None:
    """Where nobody knows what serves, no revision goes; other models' garbage does."""
    for number in (5, 6):
        publish(repository, [put_shard(repository, number)], model="other")
    grow_old(repository)
    repository.serving_file("m").write_bytes(b"{")
    found = collect(repository, keep=1)
    (text,) = found.refused
    assert "models/m/serving.json" in text
    assert paths(found, "revision") == ["models/other/1"]
    assert images(repository) == {1, 2, 3, 4, 6}


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_shard_protects_all_images(harm: str, repository: Repository) -> None:
    """Which images a damaged shard names is not known, so none goes."""
    repository.put_image(image(9))
    path = repository.path("exemplars", repository.manifest("m", 4).exemplars[-1].digest)
    if harm == "changed":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    grow_old(repository)
    found = collect(repository, keep=1)
    assert paths(found, "image") == []
    assert len(paths(found, "shard")) == 1
    (text,) = found.refused
    assert path.name in text


def test_a_damaged_shard_that_nobody_needs_goes(repository: Repository) -> None:
    """Garbage need not be sound to go."""
    path = repository.path("exemplars", put_shard(repository, 9))
    path.write_bytes(b"")
    grow_old(repository)
    found = collect(repository, pending_images=lambda: {sha256(image(1))})
    assert paths(found, "shard") == [f"exemplars/{path.name}"]
    assert not found.refused


# Crashes


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("name", ["touch", "sync_directory", "delete"])
@pytest.mark.parametrize("at", range(1, 5))
def test_a_kill_leaves_a_sound_repository(
    name: str, at: int, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is killed: no half revision, nothing missing, and the next run ends the work."""
    put_backbone(repository, 7)
    grow_old(repository)
    calls = 0
    whole = getattr(files, name)

    def killed(path: Path) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return whole(path)

    with monkeypatch.context() as until_killed:
        until_killed.setattr(files, name, killed)
        try:
            collect(repository, keep=1)
        except Killed:
            pass
        else:
            assert calls < at
    assert sound(repository)
    for revision in repository.revisions("m"):
        repository.head(repository.manifest("m", revision))
    grow_old(repository)
    collect(repository, keep=1)
    assert repository.revisions("m") == [3, 4]
    assert images(repository) == {2, 3, 4}
    assert len(repository.stored("backbones")) == 1
    assert not list(repository.root.rglob(f"{TEMPORARY}*"))


def test_a_kill_between_rename_and_delete_leaves_no_half_revision(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was moved aside is no revision any more, is not touched by sweeps at once, and goes."""
    with monkeypatch.context() as until_killed:
        until_killed.setattr(files, "delete", lambda _path: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            collect(repository, keep=1)
    assert repository.revisions("m") == [3, 4]
    aside = list((repository.root / "models" / "m").glob(f"{TEMPORARY}*"))
    assert len(aside) == 2
    assert repository.sweep() == []  # it may be somebody's work
    grow_old(repository)
    assert sorted(repository.sweep()) == sorted(aside)


def test_references_are_counted_once_revisions_are_gone_for_good(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal of revisions is durable before anything that they refer to goes."""
    done: list[str] = []
    sync, delete = files.sync_directory, files.delete

    def noted_sync(path: Path) -> None:
        done.append(f"sync {path.name}")
        sync(path)

    def noted_delete(path: Path) -> bool:
        done.append(f"delete in {path.parent.name}")
        return delete(path)

    monkeypatch.setattr(files, "sync_directory", noted_sync)
    monkeypatch.setattr(files, "delete", noted_delete)
    collect(repository, keep=1)
    assert done == [
        "sync m",
        "delete in m",
        "delete in m",
        "delete in exemplars",
        "delete in images",
    ]


# Races


def before_deleting(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let ``act`` happen after references were counted and before anything stored is deleted."""
    whole = garbage._Run.remove_blob
    acted = threading.Event()

    def remove(self: garbage._Run, *args: object) -> None:
        if not acted.is_set():
            acted.set()
            act()
        whole(self, *args)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(garbage._Run, "remove_blob", remove)


def test_what_is_published_meanwhile_stays_whole(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that refers to garbage which is just being collected saves it."""
    shard = put_shard(repository, 8)
    grow_old(repository)
    before_deleting(monkeypatch, lambda: publish(repository, [shard]))
    collect(repository, keep=1)
    assert shard in repository.stored("exemplars")
    assert sound(repository)


def test_what_is_stored_again_meanwhile_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload of what is just being collected is kept, so an acknowledged one is never lost."""
    repository.put_image(image(8))
    grow_old(repository)
    before_deleting(monkeypatch, lambda: repository.put_image(image(8)))
    assert 8 in images(repository)
    collect(repository, keep=1)
    assert images(repository) == {2, 3, 4, 8}


def test_an_operation_is_asked_for_while_no_upload_ends(repository: Repository) -> None:
    """What an upload holds stays: by its operation, though the clock was set and it looks old."""
    repository.put_image(image(8))
    operations: set[str] = set()
    grow_old(repository)
    with ThreadPoolExecutor(1) as pool:
        with repository.holding([sha256(image(8))]):
            grow_old(repository)
            collecting = pool.submit(
                collect, repository, spare_seconds=0, pending_images=lambda: list(operations)
            )
            with pytest.raises(TimeoutError):
                collecting.result(timeout=0.2)
            operations.add(sha256(image(8)))
        collecting.result(timeout=30)
    assert 8 in images(repository)


def test_an_upload_that_ends_after_operations_were_asked_for_keeps_its_images(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operation is not known to this run, but its images were made young since."""
    repository.put_image(image(8))
    grow_old(repository)
    before_deleting(monkeypatch, lambda: hold(repository, image(8)))
    collect(repository, spare_seconds=0)
    assert 8 in images(repository)


def hold(repository: Repository, content: bytes) -> None:
    """Hold an image for a moment, as an upload that ends does."""
    with repository.holding([sha256(content)]):
        pass


def test_an_image_that_is_gone_cannot_be_held(repository: Repository) -> None:
    """An upload whose images were deleted before it ended finds out."""
    with pytest.raises(Corrupt, match="is missing"):
        hold(repository, image(8))


def test_where_operations_cannot_be_asked_for_images_and_shards_stay(
    repository: Repository,
) -> None:
    """Old revisions and backbones go, and it is said why the others stay."""

    def away() -> list[str]:
        raise Unavailable("the database is away")

    put_backbone(repository, 7)
    grow_old(repository)
    found = collect(repository, keep=1, pending_images=away)
    assert {one.kind for one in found.removed} == {"revision", "backbone"}
    assert found.refused == ("the database is away: no shard and no image was deleted",)
    assert images(repository) == {1, 2, 3, 4}


def test_what_was_deleted_first_cannot_be_referred_to(repository: Repository) -> None:
    """A writer that comes too late gets an error, and publishes nothing that is not whole."""
    refs = repository.manifest("m", 1)
    collect(repository, keep=1)
    with pytest.raises(Corrupt, match="is missing"):
        repository.publish(refs, head=b"h", metrics=stored.METRICS, report=lambda _one: b"r")
    assert sound(repository)


def test_a_revision_that_was_just_made_to_serve_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback to a revision and its deletion exclude each other: it serves, or is NotFound."""
    revisions = garbage._models

    def roll_back(one: Repository) -> list[str]:
        names = list(revisions(one))
        one.set_serving("m", 1, why="rollback")
        return names

    monkeypatch.setattr(garbage, "_models", roll_back)
    collect(repository, keep=1)
    assert repository.revisions("m") == [1, 4]
    assert sound(repository)
    with pytest.raises(NotFound, match="revisions/2"):
        repository.set_serving("m", 2, why="rollback")


def test_collecting_waits_for_who_moves_the_pointer(repository: Repository) -> None:
    """While somebody holds a model's lock, none of its revisions goes."""
    with ThreadPoolExecutor(1) as pool:
        with repository.locked("m"):
            collecting = pool.submit(collect, repository, keep=1)
            with pytest.raises(TimeoutError):
                collecting.result(timeout=0.2)
            assert repository.revisions("m") == [1, 2, 3, 4]
        collecting.result(timeout=30)
    assert repository.revisions("m") == [3, 4]


def test_storing_again_and_deleting_exclude_each_other(repository: Repository) -> None:
    """While somebody makes something young, nothing stored is deleted; and the other way round."""
    repository.put_image(image(8))
    grow_old(repository)
    with ThreadPoolExecutor(1) as pool:
        with files.locked(repository.lock, shared=True):
            repository.put_image(image(7))  # writers do not wait for each other
            collecting = pool.submit(collect, repository)
            with pytest.raises(TimeoutError):
                collecting.result(timeout=0.2)
            assert 8 in images(repository)
        collecting.result(timeout=30)
        with files.locked(repository.lock):
            storing = pool.submit(repository.put_image, image(7))
            with pytest.raises(TimeoutError):
                storing.result(timeout=0.2)
        storing.result(timeout=30)
    assert images(repository) == {1, 2, 3, 4, 7}


def test_writers_and_collectors_race_to_no_harm(repository: Repository) -> None:
    """Threads publish, serve, pin and store again what two collectors delete: all stays whole.

    Everything grows old whenever no writer is between storing and publishing.
    """
    stop = threading.Event()
    writing = [threading.Lock() for _ in range(4)]

    def write(worker: int) -> list[int]:
        rng, mine, published = Random(worker), Repository(repository.root), []
        model = f"m{worker % 2}"
        for _ in range(12):
            with writing[worker]:
                shards = [put_shard(mine, number) for number in rng.sample(range(10, 16), 2)]
                made = publish(mine, shards, model=model, backbone=rng.randrange(3))
                mine.set_serving(model, made.revision, why="race")
                if rng.random() < 0.3:
                    mine.pin(model, made.revision, pinned=True)
                mine.head(made)
                mine.backbone_model(made.backbone)
                mine.exemplars(made.exemplars)
            published.append(made.revision)
        return published

    def collect_on(worker: int) -> int:
        mine, removed = Repository(repository.root), 0
        while not stop.is_set():
            if worker == 0:
                with ExitStack() as no_writer:
                    for lock in writing:
                        no_writer.enter_context(lock)
                    grow_old(mine)
            found = collect(mine, keep=1)
            assert not found.refused
            removed += len(found.removed)
        return removed

    with ThreadPoolExecutor(6) as pool:
        collectors = [pool.submit(collect_on, worker) for worker in range(2)]
        written = list(pool.map(write, range(4)))
        stop.set()
        removed = sum(one.result(timeout=60) for one in collectors)
    assert [len(set(one)) for one in written] == [12] * 4
    assert removed > 20
    assert sound(repository)


@pytest.mark.slow
@SEEDED
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.integers(0, 5), st.integers(0, 5)),
            st.tuples(st.just("serve"), st.integers(1, 6), st.just(0)),
            st.tuples(st.just("pin"), st.integers(1, 6), st.integers(0, 1)),
            st.tuples(st.just("put"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("collect"), st.integers(1, 3), st.just(0)),
        ),
        max_size=14,
    )
)
def test_any_history_keeps_all_that_is_referred_to(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, int]]
) -> None:
    """After any history, revisions that must stay are whole and the last run leaves no orphan."""
    made = stored.repository(tmp_path_factory.mktemp("history"))
    for what, one, other in history:
        match what:
            case "publish":
                publish(made, [put_shard(made, one), put_shard(made, one, other + 10)])
            case "serve" if one in made.revisions("m"):
                made.set_serving("m", one, why="test")
            case "pin" if one in made.revisions("m"):
                made.pin("m", one, pinned=bool(other))
            case "put":
                made.put_image(image(one))
            case "collect":
                grow_old(made)
                collect(made, keep=one)
        assert sound(made)
    state = made.serving_state("m")
    must = {state.revision, *state.pinned, made.revisions("m")[-1]}
    grow_old(made)
    collect(made, keep=1)
    assert set(made.revisions("m")) == must
    assert check(made) == []
