"""Garbage collection: retention, crashes, races, and unreadable files."""

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
from support.stored import (
    grow_old,
    image,
    publish,
    put_backbone,
    put_quantised_backbone,
    put_shard,
)

from topwork.bundle.blobs import NAMES
from topwork.bundle.maintenance import garbage
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import Collected, collect
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound, Unavailable
from topwork.storage import files
from topwork.storage.files import ABANDONED_AFTER, TEMPORARY, sha256


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository of old files: see ``stored.repository``."""
    return stored.repository(tmp_path / "repository")


def paths(found: Collected, kind: str) -> list[str]:
    """Return the paths of all removed files of a kind."""
    return [removed.path for removed in found.removed if removed.kind == kind]


def images(repository: Repository) -> set[int]:
    """Return the numbers, up to 99, of all stored images."""
    digests = repository.stored("images").keys()
    return {number for number in range(100) if sha256(image(number)) in digests}


def tree(root: Path) -> dict[str, bytes]:
    """Return all files below ``root`` except locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def intact(repository: Repository) -> bool:
    """Return True if the integrity check reports no error."""
    return all(problem.severity != "error" for problem in check(repository))


# Retention


def test_collect_deletes_old_revisions_with_their_blobs(repository: Repository) -> None:
    """With keep=1 the newest and the serving revision stay, with their shards and images."""
    found = collect(repository, keep=1)
    assert paths(found, "revision") == ["models/m/1", "models/m/2"]
    assert paths(found, "image") == [f"images/{sha256(image(1))}"]
    assert len(paths(found, "shard")) == 1
    assert not found.refused
    assert repository.revisions("m") == [3, 4]
    assert images(repository) == {2, 3, 4}
    assert intact(repository)
    assert not check(repository)


def test_collect_retains_pinned_revisions(repository: Repository) -> None:
    """A pinned revision stays, with its images, until it is unpinned."""
    repository.pin("m", 1, pinned=True)
    collect(repository, keep=1)
    assert repository.revisions("m") == [1, 3, 4]
    assert images(repository) == {1, 2, 3, 4}
    repository.pin("m", 1, pinned=False)
    collect(repository, keep=1)
    assert repository.revisions("m") == [3, 4]
    assert images(repository) == {2, 3, 4}


@pytest.mark.parametrize(("keep", "left"), [(2, [3, 4]), (3, [2, 3, 4]), (10, [1, 2, 3, 4])])
def test_collect_retains_the_newest_revisions(
    keep: int, left: list[int], repository: Repository
) -> None:
    """The ``keep`` newest revisions stay."""
    collect(repository, keep=keep)
    assert repository.revisions("m") == left


def test_collect_refuses_to_keep_no_revision(repository: Repository) -> None:
    """keep=0 is InvalidInput: the number of the newest revision must not be reused."""
    with pytest.raises(InvalidInput, match="keep is 0"):
        collect(repository, keep=0)


def test_collect_retains_blobs_of_other_models(repository: Repository) -> None:
    """A blob stays while a revision of any model refers to it."""
    publish(repository, [put_shard(repository, 1)], model="other")
    grow_old(repository)
    found = collect(repository, keep=1)
    assert paths(found, "revision") == ["models/m/1", "models/m/2"]
    assert images(repository) == {1, 2, 3, 4}


def test_collect_deletes_orphaned_backbones(repository: Repository) -> None:
    """A backbone that no revision refers to is deleted; others stay."""
    orphan = put_backbone(repository, 7)
    grow_old(repository)
    assert paths(collect(repository), "backbone") == [f"backbones/{orphan}"]
    assert repository.stored("backbones").keys() == {repository.manifest("m", 3).backbone}


def test_collect_retains_the_twin_of_a_backbone(repository: Repository) -> None:
    """The fp32 twin stays as long as a revision refers to the int8 backbone, and no longer."""
    twin = put_backbone(repository, 7)
    int8 = put_quantised_backbone(repository, 8, twin=7)
    publish(repository, [put_shard(repository, 1)], model="other", backbone=8)
    grow_old(repository)
    assert paths(collect(repository), "backbone") == []
    assert {twin, int8} <= repository.stored("backbones").keys()
    shutil.rmtree(repository.root / "models" / "other")
    expected = sorted(f"backbones/{digest}" for digest in (twin, int8))
    assert sorted(paths(collect(repository), "backbone")) == expected


def test_missing_twin_is_no_obstacle(repository: Repository) -> None:
    """A twin that somebody deleted stays deleted, and other backbones are collected."""
    put_quantised_backbone(repository, 8, twin=7)
    publish(repository, [put_shard(repository, 1)], model="other", backbone=8)
    orphan = put_backbone(repository, 9)
    grow_old(repository)
    found = collect(repository)
    assert (paths(found, "backbone"), found.refused) == ([f"backbones/{orphan}"], ())


def test_collect_retains_added_backbones(repository: Repository) -> None:
    """A backbone that was added by name stays without a model; one that lost its name goes."""
    first, second = put_backbone(repository, 7), put_backbone(repository, 8)
    repository.add_backbone("mine", first)
    repository.add_backbone("mine", second, replace=True)
    stored.grow_old(repository)
    assert paths(collect(repository), "backbone") == [f"backbones/{first}"]
    assert second in repository.stored("backbones")
    assert check(repository) == []


def test_collect_deletes_no_backbone_if_the_names_are_unreadable(repository: Repository) -> None:
    """Unreadable names may have any backbone."""
    repository.add_backbone("mine", put_backbone(repository, 7))
    put_backbone(repository, 8)
    (repository.root / NAMES).write_text("{")
    stored.grow_old(repository)
    found = collect(repository)
    assert paths(found, "backbone") == []
    assert any("no backbone was deleted" in text for text in found.refused)


def test_backbone_added_during_collect_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone that gets its name after the names were read is not deleted."""
    digest = put_backbone(repository, 7)
    stored.grow_old(repository)
    read = Repository.added_backbones

    def add_after(self: Repository) -> dict[str, str]:
        names = read(self)
        monkeypatch.setattr(Repository, "added_backbones", read)
        self.add_backbone("mine", digest)
        return names

    monkeypatch.setattr(Repository, "added_backbones", add_after)
    assert paths(collect(repository), "backbone") == []
    assert repository.added_backbones() == {"mine": digest}


def test_collect_deletes_no_backbone_if_a_twin_is_unknown(repository: Repository) -> None:
    """An unreadable description may name any twin; other blobs are collected."""
    put_backbone(repository, 7)
    put_shard(repository, 9)
    grow_old(repository)
    digest = repository.manifest("m", 3).backbone
    ((repository.root / repository.key("backbones", digest)) / "backbone.json").write_bytes(b"{")
    found = collect(repository)
    assert paths(found, "backbone") == []
    assert len(paths(found, "shard")) == 1
    assert any("no backbone was deleted" in text for text in found.refused)


def test_publishing_refreshes_the_twin(repository: Repository) -> None:
    """A twin that was old when a collection began is not deleted after a publication."""
    twin = put_backbone(repository, 7)
    put_quantised_backbone(repository, 8, twin=7)
    grow_old(repository)
    before = (repository.root / repository.key("backbones", twin)).stat().st_mtime
    publish(repository, [put_shard(repository, 1)], model="other", backbone=8)
    assert (repository.root / repository.key("backbones", twin)).stat().st_mtime > before


def test_collect_retains_files_younger_than_spare_seconds(repository: Repository) -> None:
    """New files stay, since a writer may be about to publish a reference to them."""
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


def test_new_shard_retains_its_old_images(repository: Repository) -> None:
    """Old images stay if a new shard refers to them."""
    repository.put_image(image(9))
    grow_old(repository)
    put_shard(repository, 9, put=False)
    assert not collect(repository).removed
    assert 9 in images(repository)


def test_collect_retains_images_of_unfinished_operations(repository: Repository) -> None:
    """Pending images stay at any age, and so do their shards."""
    shard = put_shard(repository, 8)
    put_shard(repository, 9)
    grow_old(repository)
    collect(repository, pending_images=lambda: {sha256(image(8))})
    assert images(repository) == {1, 2, 3, 4, 8}
    assert shard in repository.stored("exemplars")
    assert len(repository.stored("exemplars")) == 5


def test_collect_retains_a_model_without_serving_revision(repository: Repository) -> None:
    """A fit that crashed before it set the serving pointer loses nothing."""
    publish(repository, [put_shard(repository, 5)], model="new")
    grow_old(repository)
    assert not collect(repository, keep=4).removed
    assert repository.revisions("new") == [1]


def test_collect_retains_manual_copies_and_their_blobs(repository: Repository) -> None:
    """A directory without a valid model name stays, and so do the blobs of its revisions."""
    models = repository.root / "models"
    shutil.copytree(models / "m", models / "m (before)")
    grow_old(repository)
    collect(repository, keep=1)
    assert (models / "m (before)" / "1" / "manifest.json").exists()
    assert images(repository) == {1, 2, 3, 4}


def test_collect_retains_unexpected_files(repository: Repository) -> None:
    """Files that are not named by a sha256 stay."""
    for kind in ("images", "exemplars", "backbones", "models"):
        (repository.root / kind / "notes.txt").write_bytes(b"mine")
    (repository.root / "images" / f"{'0' * 64}.npz").write_bytes(b"mine")
    grow_old(repository)
    assert not collect(repository).removed


def test_collect_deletes_old_temporary_files(repository: Repository) -> None:
    """Old temporary files are deleted; new ones stay."""
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


def test_collect_with_spare_seconds_0_deletes_files_of_dead_writers(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process's partial revision is deleted at once; one being written stays."""
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


def test_collect_reports_the_freed_bytes(repository: Repository) -> None:
    """The reported sizes add up to the bytes that the repository shrank by."""
    before = sum(map(len, tree(repository.root).values()))
    found = collect(repository, keep=1)
    after = sum(map(len, tree(repository.root).values()))
    assert sum(removed.size for removed in found.removed) == before - after > 0


def test_dry_run_lists_without_deleting(repository: Repository) -> None:
    """A dry run lists exactly the files that the next run deletes, and changes nothing."""
    put_backbone(repository, 7)
    grow_old(repository)
    before = tree(repository.root)
    planned = collect(repository, keep=1, dry_run=True)
    assert tree(repository.root) == before
    assert collect(repository, keep=1) == planned
    assert len(planned.removed) == 5


def test_second_collect_deletes_nothing(repository: Repository) -> None:
    """One run deletes all garbage."""
    collect(repository, keep=1)
    assert collect(repository, keep=1) == Collected(removed=(), refused=())


def test_collect_accepts_an_empty_repository(tmp_path: Path) -> None:
    """A directory that does not exist is no error."""
    assert collect(Repository(tmp_path / "none")) == Collected(removed=(), refused=())


# Unreadable files


@pytest.mark.parametrize("content", [b"{", b"{}", None], ids=["broken", "other", "missing"])
def test_unreadable_manifest_retains_all_blobs(
    content: bytes | None, repository: Repository
) -> None:
    """No blob is deleted, since the manifest may refer to it, and the file is reported."""
    path = repository.root / "models" / "m" / "4" / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    put_backbone(repository, 7)
    grow_old(repository)
    found = collect(repository, keep=1)
    assert {removed.kind for removed in found.removed} == {"revision"}
    assert [text for text in found.refused if "models/m/4/manifest.json" in text]
    assert images(repository) == {1, 2, 3, 4}


def test_manifest_of_a_newer_schema_retains_all_blobs(repository: Repository) -> None:
    """A manifest of a newer schema may have references that this software does not know."""
    path = repository.root / "models" / "m" / "4" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 3', b'"schema": 5'))
    (text,) = collect(repository, keep=1).refused
    assert "schema 5" in text
    assert images(repository) == {1, 2, 3, 4}


def test_unreadable_serving_pointer_retains_all_revisions(repository: Repository) -> None:
    """Without a readable serving.json no revision of the model is deleted; other models' are."""
    for number in (5, 6):
        publish(repository, [put_shard(repository, number)], model="other")
    grow_old(repository)
    (repository.root / repository.serving_key("m")).write_bytes(b"{")
    found = collect(repository, keep=1)
    (text,) = found.refused
    assert "models/m/serving.json" in text
    assert paths(found, "revision") == ["models/other/1"]
    assert images(repository) == {1, 2, 3, 4, 6}


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_damaged_shard_retains_all_images(harm: str, repository: Repository) -> None:
    """No image is deleted, since the damaged shard may refer to it."""
    repository.put_image(image(9))
    path = repository.root / repository.key(
        "exemplars", repository.manifest("m", 4).exemplars[-1].digest
    )
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


def test_collect_deletes_damaged_orphaned_shards(repository: Repository) -> None:
    """A damaged shard is deleted if no revision refers to it."""
    path = repository.root / repository.key("exemplars", put_shard(repository, 9))
    path.write_bytes(b"")
    grow_old(repository)
    found = collect(repository, pending_images=lambda: {sha256(image(1))})
    assert paths(found, "shard") == [f"exemplars/{path.name}"]
    assert not found.refused


# Crashes


class Killed(BaseException):
    """Simulates a killed process."""


@pytest.mark.parametrize("name", ["touch", "sync_directory", "delete"])
@pytest.mark.parametrize("at", range(1, 5))
def test_killed_collect_leaves_an_intact_repository(
    name: str, at: int, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill at any step all revisions are complete, and the next run finishes the work."""
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
    assert intact(repository)
    for revision in repository.revisions("m"):
        repository.head(repository.manifest("m", revision))
    grow_old(repository)
    collect(repository, keep=1)
    assert repository.revisions("m") == [3, 4]
    assert images(repository) == {2, 3, 4}
    assert len(repository.stored("backbones")) == 1
    assert not list(repository.root.rglob(f"{TEMPORARY}*"))


def test_kill_between_rename_and_delete_leaves_no_partial_revision(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renamed revision is not listed any more; a later sweep deletes it."""
    with monkeypatch.context() as until_killed:
        until_killed.setattr(files, "delete", lambda _path: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            collect(repository, keep=1)
    assert repository.revisions("m") == [2, 3, 4]
    aside = [*(repository.root / "models" / "m").glob(f"{TEMPORARY}*")]
    assert len(aside) == 1
    assert repository.sweep() == []  # its writer may be alive
    grow_old(repository)
    assert [repository.root / key for key in repository.sweep()] == aside


def test_collect_syncs_deleted_revisions_before_deleting_blobs(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal of revisions is durable before their blobs are deleted."""
    calls: list[str] = []
    sync, delete = files.sync_directory, files.delete

    def recording_sync(path: Path) -> None:
        calls.append(f"sync {path.name}")
        sync(path)

    def recording_delete(path: Path) -> bool:
        calls.append(f"delete in {path.parent.name}")
        return delete(path)

    monkeypatch.setattr(files, "sync_directory", recording_sync)
    monkeypatch.setattr(files, "delete", recording_delete)
    collect(repository, keep=1)
    assert calls == [
        *["sync m", "delete in m"] * 2,
        "delete in exemplars",
        "delete in images",
    ]


# Races


def before_deleting(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call ``act`` once, after the references were read and before the first blob is deleted."""
    whole = garbage._Run.remove_blob
    acted = threading.Event()

    def remove(self: garbage._Run, *args: object) -> None:
        if not acted.is_set():
            acted.set()
            act()
        whole(self, *args)  # type: ignore[arg-type]  # what it was called with

    monkeypatch.setattr(garbage._Run, "remove_blob", remove)


def test_revision_published_during_collect_keeps_its_blobs(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is not deleted if a revision that refers to it is published meanwhile."""
    shard = put_shard(repository, 8)
    grow_old(repository)
    before_deleting(monkeypatch, lambda: publish(repository, [shard]))
    collect(repository, keep=1)
    assert shard in repository.stored("exemplars")
    assert intact(repository)


def test_blob_stored_again_during_collect_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphaned image that is uploaded again meanwhile is not deleted."""
    repository.put_image(image(8))
    grow_old(repository)
    before_deleting(monkeypatch, lambda: repository.put_image(image(8)))
    assert 8 in images(repository)
    collect(repository, keep=1)
    assert images(repository) == {2, 3, 4, 8}


def test_collect_reads_pending_images_while_none_are_held(repository: Repository) -> None:
    """Images of an upload stay even if they look old, since collect waits for its operation."""
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


def test_images_held_after_pending_images_were_read_stay(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run does not know the operation, but the upload has refreshed its images."""
    repository.put_image(image(8))
    grow_old(repository)
    before_deleting(monkeypatch, lambda: hold(repository, image(8)))
    collect(repository, spare_seconds=0)
    assert 8 in images(repository)


def hold(repository: Repository, content: bytes) -> None:
    """Hold an image for a moment, as an upload does."""
    with repository.holding([sha256(content)]):
        pass


def test_holding_a_deleted_image_is_corrupt(repository: Repository) -> None:
    """An upload fails if one of its images was deleted before the operation was stored."""
    with pytest.raises(Corrupt, match="is missing"):
        hold(repository, image(8))


def test_unavailable_pending_images_retain_all_images_and_shards(
    repository: Repository,
) -> None:
    """Only old revisions and backbones are deleted, and the reason is reported."""

    def unavailable() -> list[str]:
        raise Unavailable("the database is down")

    put_backbone(repository, 7)
    grow_old(repository)
    found = collect(repository, keep=1, pending_images=unavailable)
    assert {removed.kind for removed in found.removed} == {"revision", "backbone"}
    assert found.refused == ("the database is down: no shard and no image was deleted",)
    assert images(repository) == {1, 2, 3, 4}


def test_publish_after_its_blobs_were_deleted_is_corrupt(repository: Repository) -> None:
    """Publishing a reference to a deleted blob fails and leaves no revision."""
    draft = repository.manifest("m", 1)
    collect(repository, keep=1)
    with pytest.raises(Corrupt, match="is missing"):
        repository.publish(draft, head=b"h", metrics=stored.METRICS, report=lambda _: b"r")
    assert intact(repository)


def test_rollback_during_collect_retains_the_revision(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback to an old revision retains it, or is NotFound after its deletion."""
    list_models = Repository.model_names

    def roll_back(repository: Repository) -> list[str]:
        names = list_models(repository)
        repository.set_serving("m", 1, why="rollback")
        return names

    monkeypatch.setattr(Repository, "model_names", roll_back)
    collect(repository, keep=1)
    assert repository.revisions("m") == [1, 4]
    assert intact(repository)
    with pytest.raises(NotFound, match="revisions/2"):
        repository.set_serving("m", 2, why="rollback")


def test_collect_waits_for_the_lock_of_a_model(repository: Repository) -> None:
    """No revision is deleted while another thread holds the model's lock."""
    with ThreadPoolExecutor(1) as pool:
        with repository.locked("m"):
            collecting = pool.submit(collect, repository, keep=1)
            with pytest.raises(TimeoutError):
                collecting.result(timeout=0.2)
            assert repository.revisions("m") == [1, 2, 3, 4]
        collecting.result(timeout=30)
    assert repository.revisions("m") == [3, 4]


@pytest.mark.slow
def test_refreshing_and_deleting_exclude_each_other(repository: Repository) -> None:
    """No blob is deleted while another is refreshed, and none is refreshed during a deletion."""
    repository.put_image(image(8))
    grow_old(repository)
    with ThreadPoolExecutor(1) as pool:
        with files.locked(repository.root / ".lock", shared=True):
            repository.put_image(image(7))  # writers share the lock
            collecting = pool.submit(collect, repository)
            with pytest.raises(TimeoutError):
                collecting.result(timeout=0.2)
            assert 8 in images(repository)
        collecting.result(timeout=30)
        with files.locked(repository.root / ".lock"):
            storing = pool.submit(repository.put_image, image(7))
            with pytest.raises(TimeoutError):
                storing.result(timeout=0.2)
        storing.result(timeout=30)
    assert images(repository) == {1, 2, 3, 4, 7}


@pytest.mark.slow
def test_racing_writers_and_collectors_leave_an_intact_repository(repository: Repository) -> None:
    """Four threads publish, serve and pin blobs that two collectors delete.

    All files become old whenever no writer is between storing and publishing.
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
        removed = sum(collector.result(timeout=60) for collector in collectors)
    assert [len(set(revisions)) for revisions in written] == [12] * 4
    assert removed > 20
    assert intact(repository)


@pytest.mark.slow
@settings(max_examples=40)
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
def test_collect_after_any_history_leaves_an_intact_repository(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int, int]]
) -> None:
    """Retained revisions stay complete, and the last run leaves no orphaned blob."""
    made = stored.repository(tmp_path_factory.mktemp("history"))
    for action, number, other in history:
        match action:
            case "publish":
                publish(made, [put_shard(made, number), put_shard(made, number, other + 10)])
            case "serve" if number in made.revisions("m"):
                made.set_serving("m", number, why="test")
            case "pin" if number in made.revisions("m"):
                made.pin("m", number, pinned=bool(other))
            case "put":
                made.put_image(image(number))
            case "collect":
                grow_old(made)
                collect(made, keep=number)
        assert intact(made)
    state = made.serving_state("m")
    retained = {state.revision, *state.pinned, made.revisions("m")[-1]}
    grow_old(made)
    collect(made, keep=1)
    assert set(made.revisions("m")) == retained
    assert check(made) == []
