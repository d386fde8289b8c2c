"""Repository: publishing and serving are atomic under races, crashes and tampering."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny

from topwork.bundle.blobs import NAMES
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.documents import to_json
from topwork.bundle.exemplars import Exemplars, make, shard_of
from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import ChosenHead, Manifest
from topwork.bundle.metrics import Metrics, evaluate
from topwork.bundle.recipe import Recipe
from topwork.bundle.shards import to_bytes
from topwork.bundle.store import Repository
from topwork.errors import AlreadyExists, Corrupt, InvalidInput, NotFound, NotReady
from topwork.storage.files import ABANDONED_AFTER, TEMPORARY, sha256

BACKBONE = b"a backbone"
HEAD = b"a head"
IMAGE = b"an image"


def metrics(images: int = 2) -> Metrics:
    """Return metrics that differ in their number of images."""
    return evaluate(np.arange(images) % 2, np.eye(2)[np.arange(images) % 2], ("a", "b"), folds=5)


def exemplars(label: str, seed: int) -> Exemplars:
    """Return two exemplars of one label."""
    rng = np.random.default_rng(seed)
    digests, prints = rng.integers(0, 256, (2, 2, 32), dtype=np.uint8)
    return make(rng.normal(size=(2, 3)).astype(np.float32), digests, prints, [label] * 2)


def shard_digest(label: str, seed: int) -> str:
    """Return the digest of the shard of ``exemplars(label, seed)``."""
    return sha256(to_bytes(shard_of(exemplars(label, seed), label)))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository in which revision 1 of model ``m`` serves."""
    made = Repository(tmp_path / "repository")
    info = tiny.backbone_info(BACKBONE)
    made.put_backbone(BACKBONE, info)
    made.put_image(IMAGE)
    draft = Manifest(
        model="m",
        revision=0,
        parent=0,
        labels=("a", "b"),
        backbone=info.digest,
        backbone_info=made.backbone_info_digest(info.digest),
        head="",
        metrics="",
        report="",
        exemplars=(*made.put_exemplars(exemplars("b", 1)), *made.put_exemplars(exemplars("a", 2))),
        data_digest=sha256(b""),
        images=4,
        seed=0,
        recipe=Recipe(),
        chosen=ChosenHead(
            kind="logistic",
            normalisation="l2",
            strength=1.0,
            temperature=1.0,
            unknown_threshold=None,
        ),
        precision_gate=None,
        change="fit",
        operation="",
        comparison=None,
        rejection=None,
        created=datetime(2000, 1, 1, tzinfo=UTC),
        versions={},
    )
    published = made.publish(draft, head=HEAD, metrics=metrics(), report=page)
    made.set_serving("m", published.revision, why="fit")
    return made


def page(manifest: Manifest) -> bytes:
    """Return a fake report."""
    return f"revision {manifest.revision}".encode()


def first(repository: Repository) -> Manifest:
    """Return the manifest of revision 1."""
    return repository.manifest("m", 1)


def again(repository: Repository, head: bytes = HEAD) -> Manifest:
    """Publish the next revision of ``m``."""
    return repository.publish(first(repository), head=head, metrics=metrics(), report=page)


def edit(repository: Repository, **changes: Any) -> None:
    """Change fields in the stored manifest of revision 1."""
    path = repository.root / "models" / "m" / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def tree(root: Path) -> dict[str, bytes]:
    """Return all files below ``root``."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def inodes(root: Path) -> set[int]:
    """Return the inodes of all files below ``root``, which change if a file is replaced."""
    return {path.stat().st_ino for path in root.rglob("*")}


# Reading and publishing


def test_repository_returns_what_was_published(repository: Repository) -> None:
    """Head, metrics, backbone, exemplars and image are read unchanged."""
    manifest = first(repository)
    assert repository.head(manifest) == HEAD
    assert repository.metrics(manifest) == metrics()
    assert repository.backbone(manifest) == tiny.backbone_info(BACKBONE)
    assert repository.backbone_model(manifest.backbone) == BACKBONE
    assert repository.backbones() == [tiny.backbone_info(BACKBONE)]
    assert repository.image(sha256(IMAGE)) == IMAGE
    both = repository.exemplars(manifest.exemplars)
    assert both.labels == ("a", "b")
    assert len(both) == 4


def test_publish_sets_revision_digests_and_time(repository: Repository) -> None:
    """Publish sets the revision, the digests and the time; other fields are the draft's."""
    before = datetime.now(UTC)
    manifest = repository.publish(
        replace(first(repository), parent=1, operation="o"),
        head=b"other",
        metrics=metrics(6),
        report=page,
    )
    assert manifest.revision == 2
    assert manifest.head == sha256(b"other")
    assert manifest.metrics == sha256(to_json(metrics(6)))
    assert before <= manifest.created <= before + timedelta(minutes=1)
    assert (manifest.parent, manifest.operation) == (1, "o")
    assert repository.manifest("m", 2) == manifest


def test_publish_numbers_revisions_and_changes_no_other(repository: Repository) -> None:
    """Each revision gets the next number, also above 9; existing files do not change."""
    before = tree(repository.root)
    numbers = [again(repository, f"head {index}".encode()).revision for index in range(2, 13)]
    assert numbers == list(range(2, 13))
    assert repository.revisions("m") == list(range(1, 13))
    after = tree(repository.root)
    assert before.items() <= after.items()


def test_publish_does_not_reuse_numbers_of_deleted_revisions(repository: Repository) -> None:
    """The next number is the highest plus 1, so that number 2 never means two revisions."""
    again(repository)
    again(repository)
    shutil.rmtree(repository.root / "models" / "m" / "2")
    assert again(repository).revision == 4


def test_storing_a_blob_again_writes_nothing(repository: Repository) -> None:
    """A backbone, shard or image that is stored again keeps its digest and its file."""
    before, written = tree(repository.root), inodes(repository.root)
    info = tiny.backbone_info(BACKBONE)
    repository.put_backbone(BACKBONE, replace(info, source="elsewhere"))
    assert repository.put_image(IMAGE) == sha256(IMAGE)
    (ref,) = repository.put_exemplars(exemplars("b", 1))
    assert (ref.label, ref.digest) == ("b", shard_digest("b", 1))
    assert tree(repository.root) == before
    assert inodes(repository.root) == written


def test_find_returns_the_newest_match(repository: Repository) -> None:
    """find() returns the newest revision that matches, or None."""
    for operation in ("x", "y", "x", "z"):
        draft = replace(first(repository), operation=operation)
        repository.publish(draft, head=HEAD, metrics=metrics(), report=page)
    found = repository.find("m", lambda manifest: manifest.operation == "x")
    assert found is not None
    assert found.revision == 4
    assert repository.find("m", lambda _manifest: False) is None


@pytest.mark.parametrize("missing", ["backbones", "exemplars"])
def test_publish_with_a_missing_blob_is_corrupt(missing: str, repository: Repository) -> None:
    """No revision is published if its backbone or a shard is not stored."""
    draft = first(repository)
    (path, *_) = sorted((repository.root / missing).iterdir())
    path.rename(repository.root / "elsewhere")
    with pytest.raises(Corrupt, match=f"{missing}/.* is missing"):
        repository.publish(draft, head=HEAD, metrics=metrics(), report=page)
    assert repository.revisions("m") == [1]
    assert not list(repository.root.rglob(f"{TEMPORARY}*"))


def aged(root: Path) -> dict[Path, int]:
    """Make all blobs below ``root`` old, and return their modification times."""
    stored = [
        path for kind in ("backbones", "exemplars", "images") for path in (root / kind).iterdir()
    ]
    for path in stored:
        os.utime(path, (1e9, 1e9))
    return {path: path.stat().st_mtime_ns for path in stored}


STORING: dict[str, tuple[str, Callable[[Repository], object]]] = {
    "an image": ("images", lambda it: it.put_image(IMAGE)),
    "a shard": ("exemplars", lambda it: it.put_exemplars(exemplars("b", 1))),
    "a backbone": (
        "backbones",
        lambda it: it.put_backbone(BACKBONE, tiny.backbone_info(BACKBONE)),
    ),
}


@pytest.mark.parametrize("blob", STORING)
def test_storing_a_blob_again_refreshes_it(blob: str, repository: Repository) -> None:
    """A blob that is stored again gets a new modification time, which protects it from gc."""
    kind, store = STORING[blob]
    before = aged(repository.root)
    store(repository)
    changed = [path for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns]
    assert len(changed) == 1
    assert changed[0].parent.name == kind
    assert abs(changed[0].stat().st_mtime - time.time()) < 60


def test_publish_refreshes_backbone_and_shards(repository: Repository) -> None:
    """Publish refreshes the backbone and the shards; the shards protect the images."""
    before = aged(repository.root)
    again(repository)
    old = {
        path.parent.name for path, time_ns in before.items() if path.stat().st_mtime_ns == time_ns
    }
    assert old == {"images"}


# Races


class RacingRepository(Repository):
    """Repository whose first listing of revisions waits until all writers have listed them."""

    def __init__(self, root: Path, barrier: threading.Barrier) -> None:
        super().__init__(root)
        self._barrier = barrier
        self._listed = False

    def revisions(self, model: str) -> list[int]:
        """Return the revisions from before any writer published."""
        found = super().revisions(model)
        if not self._listed:
            self._listed = True
            self._barrier.wait(timeout=30)
        return found


def test_racing_writers_get_different_numbers(repository: Repository) -> None:
    """Writers that all saw revision 1 as the newest publish complete, different revisions."""
    writers = 4
    barrier = threading.Barrier(writers)
    draft = first(repository)

    def publish(writer: int) -> Manifest:
        return RacingRepository(repository.root, barrier).publish(
            draft, head=f"head {writer}".encode(), metrics=metrics(writer + 2), report=page
        )

    with ThreadPoolExecutor(writers) as pool:
        published = list(pool.map(publish, range(writers)))
    assert sorted(manifest.revision for manifest in published) == [2, 3, 4, 5]
    for writer, manifest in enumerate(published):
        assert repository.manifest("m", manifest.revision) == manifest
        assert repository.head(manifest) == f"head {writer}".encode()
        assert repository.metrics(manifest) == metrics(writer + 2)
    assert not list(repository.root.rglob(f"{TEMPORARY}*"))


def test_racing_writers_store_a_backbone_once(tmp_path: Path) -> None:
    """Concurrent writers of the same backbone all succeed and store it once."""
    info = tiny.backbone_info(BACKBONE)

    def put(_writer: int) -> None:
        Repository(tmp_path).put_backbone(BACKBONE, info)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(8)))
    assert Repository(tmp_path).backbones() == [info]
    assert Repository(tmp_path).backbone_model(info.digest) == BACKBONE
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_publish_does_not_retry_after_a_disk_error(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the rename is raised, not taken for a lost race."""
    tries = iter(range(3))

    def refuse(_self: Path, _target: Path) -> Path:
        if next(tries, None) is None:
            pytest.fail("publish retries for ever")
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="read-only"):
        again(repository)


# Crashes


class PowerCut(BaseException):
    """Simulates a power failure, after which no cleanup code runs."""


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename")])
def test_partial_revision_after_a_crash_is_invisible(
    owner: object, name: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash in publish the model is unchanged and the number is still free."""

    def stop(*_args: object) -> None:
        raise PowerCut

    with monkeypatch.context() as until_reboot:
        until_reboot.setattr(owner, name, stop)
        until_reboot.setattr(shutil, "rmtree", lambda *_args, **_options: None)
        with pytest.raises(PowerCut):
            again(repository, b"never seen")
    (left,) = repository.root.rglob(f"{TEMPORARY}*")
    assert (left / "head.onnx").exists()
    assert repository.models() == ["m"]
    assert repository.revisions("m") == [1]
    assert repository.find("m", lambda _manifest: True) == first(repository)
    assert again(repository).revision == 2


def test_partial_backbone_after_a_crash_is_invisible(repository: Repository) -> None:
    """Temporary files of a crashed writer are not listed as a backbone."""
    left = repository.root / "backbones" / f"{TEMPORARY}1"
    left.mkdir()
    (left / "backbone.json").write_bytes(b"{")
    assert repository.backbones() == [tiny.backbone_info(BACKBONE)]


def test_sweep_deletes_old_temporary_files(repository: Repository) -> None:
    """Sweep deletes old temporary names in all directories; other files stay."""
    before = tree(repository.root)
    old = time.time() - ABANDONED_AFTER - 60
    left = {
        repository.root / place / f"{TEMPORARY}1"
        for place in ("backbones", "exemplars", "images", "models/m")
    }
    for path in left:
        path.mkdir()
        os.utime(path, times=(old, old))
    assert {repository.root / key for key in repository.sweep()} == left
    assert tree(repository.root) == before
    assert not any(path.exists() for path in left)


# Tampering

READS: dict[str, Callable[[Repository], object]] = {
    "models/m/1/head.onnx": lambda it: it.head(first(it)),
    "models/m/1/metrics.json": lambda it: it.metrics(first(it)),
    f"backbones/{sha256(BACKBONE)}/backbone.onnx": lambda it: it.backbone_model(sha256(BACKBONE)),
    f"backbones/{sha256(BACKBONE)}/backbone.json": lambda it: it.backbone(first(it)),
    f"exemplars/{shard_digest('a', 2)}.npz": (lambda it: it.exemplars(first(it).exemplars)),
    f"images/{sha256(IMAGE)}": lambda it: it.image(sha256(IMAGE)),
}
"""Reader of each verified file."""


@pytest.mark.parametrize("file", READS)
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_file_is_corrupt(file: str, damage: str, repository: Repository) -> None:
    """A file with a flipped bit, truncated or deleted is Corrupt; the message names it."""
    path = repository.root / file
    content = bytearray(path.read_bytes())
    READS[file](repository)
    match damage:
        case "changed":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "truncated":
            path.write_bytes(content[:-1])
        case _:
            path.unlink()
    with pytest.raises(Corrupt) as caught:
        READS[file](repository)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "../../../etc/passwd"},
        {"exemplars": [{"label": "a", "digest": "../x"}]},
        {"backbone": ".."},
        {"schema": 5},
        {"revision": 2},
        {"model": "other"},
        {"labels": None},
    ],
    ids=str,
)
def test_invalid_manifest_is_corrupt(changes: dict[str, Any], repository: Repository) -> None:
    """Invalid digests, another revision's manifest, and a newer schema are Corrupt."""
    edit(repository, **changes)
    with pytest.raises(Corrupt, match=r"models/m/1/manifest\.json"):
        first(repository)


def test_newer_schema_error_has_both_schemas(repository: Repository) -> None:
    """The message has the schema of the file and the supported one."""
    edit(repository, schema=5)
    with pytest.raises(Corrupt, match="schema 5; this software reads 3 and 4"):
        first(repository)


def test_backbone_info_digest_of_a_missing_backbone_is_corrupt(repository: Repository) -> None:
    """A backbone that is not stored has no digest of backbone.json."""
    with pytest.raises(Corrupt, match=r"backbone\.json is missing"):
        repository.backbone_info_digest("0" * 64)


# Serving


def test_set_serving_moves_forward_and_back(repository: Repository) -> None:
    """Publish does not move the serving pointer; set_serving does, also to older revisions."""
    again(repository)
    assert repository.serving("m") == 1
    repository.set_serving("m", 2, why="test")
    assert repository.serving("m") == 2
    repository.set_serving("m", 1, why="test")
    assert repository.serving("m") == 1


def test_set_serving_of_an_unknown_revision_is_not_found(repository: Repository) -> None:
    """A revision that does not exist is NotFound, and the pointer stays."""
    with pytest.raises(NotFound) as caught:
        repository.set_serving("m", 2, why="test")
    assert (caught.value.kind, caught.value.resource) == ("revision", "models/m/revisions/2")
    assert repository.serving("m") == 1


def test_set_serving_of_a_corrupt_revision_is_corrupt(repository: Repository) -> None:
    """The pointer does not move to a revision with an unreadable manifest."""
    again(repository)
    (repository.root / "models" / "m" / "2" / "manifest.json").write_bytes(b"{")
    with pytest.raises(Corrupt):
        repository.set_serving("m", 2, why="test")
    assert repository.serving("m") == 1


@pytest.mark.parametrize("content", [b"", b"{}", b'{"revision": "1"}', b"\0" * 20])
def test_invalid_serving_pointer_is_corrupt(content: bytes, repository: Repository) -> None:
    """A serving.json without a revision is Corrupt; the message names it."""
    (repository.root / repository.serving_key("m")).write_bytes(content)
    with pytest.raises(Corrupt, match=r"m/serving\.json"):
        repository.serving("m")


def test_models_lists_serving_models(repository: Repository) -> None:
    """models() returns the sorted names of models with a serving revision."""
    for name in ("z", "b"):
        repository.publish(
            replace(first(repository), model=name), head=HEAD, metrics=metrics(), report=page
        )
    assert repository.models() == ["m"]
    with pytest.raises(NotFound, match="models/b"):
        repository.serving("b")
    repository.set_serving("z", 1, why="test")
    repository.set_serving("b", 1, why="test")
    assert repository.models() == ["b", "m", "z"]


def test_an_empty_repository_has_no_models(tmp_path: Path) -> None:
    """A directory that does not exist is a repository without models."""
    assert Repository(tmp_path / "none").models() == []
    assert Repository(tmp_path / "none").backbones() == []
    with pytest.raises(NotFound):
        Repository(tmp_path / "none").revisions("m")


def test_added_backbones_have_names(tmp_path: Path) -> None:
    """A name leads to one backbone; it moves to another one only if told so."""
    repository = Repository(tmp_path / "repository")
    assert repository.added_backbones() == {}
    first, second = (
        repository.put_backbone(content, tiny.backbone_info(content)).digest
        for content in (BACKBONE, b"another backbone")
    )
    repository.add_backbone("mine", first)
    repository.add_backbone("mine", first)
    repository.add_backbone("a/b@288", second)
    assert repository.added_backbones() == {"a/b@288": second, "mine": first}
    with pytest.raises(AlreadyExists, match="another backbone 'mine'"):
        repository.add_backbone("mine", second)
    repository.add_backbone("mine", second, replace=True)
    assert repository.added_backbones()["mine"] == second


def test_backbone_that_is_not_stored_gets_no_name(repository: Repository) -> None:
    """Adding a name for a digest that is not stored is refused."""
    with pytest.raises(Corrupt, match="is missing"):
        repository.add_backbone("mine", "0" * 64)
    assert repository.added_backbones() == {}


def test_names_with_an_invalid_digest_are_corrupt(repository: Repository) -> None:
    """A digest becomes part of a path, so it is validated when it is read."""
    (repository.root / NAMES).write_text('{"names": {"mine": "../../etc"}}')
    with pytest.raises(Corrupt, match=r"names\.json cannot be used"):
        repository.added_backbones()


def test_history_records_every_move(repository: Repository) -> None:
    """Each move has both revisions, the reason, the operation and the time."""
    again(repository)
    before = datetime.now(UTC)
    repository.set_serving("m", 2, why="add_class", operation="o")
    repository.set_serving("m", 1, why="rollback")
    state = repository.serving_state("m")
    assert state.revision == 1
    assert [(move.previous, move.revision, move.why, move.operation) for move in state.moves] == [
        (0, 1, "fit", ""),
        (1, 2, "add_class", "o"),
        (2, 1, "rollback", ""),
    ]
    assert before <= state.moves[1].time <= state.moves[2].time <= datetime.now(UTC)


def test_set_serving_of_the_serving_revision_changes_nothing(repository: Repository) -> None:
    """Serving the current revision again is no move, even with another parent."""
    again(repository)
    repository.set_serving("m", 2, why="add_class", operation="o", parent=1)
    before = tree(repository.root)
    assert repository.set_serving("m", 2, why="add_class", operation="o", parent=1) == 2
    assert tree(repository.root) == before


def test_an_operation_moves_the_pointer_once(repository: Repository) -> None:
    """An operation that is retried after a crash does not undo a later rollback."""
    again(repository)
    assert not repository.was_moved_by("m", "o", 2)
    repository.set_serving("m", 2, why="add_class", operation="o", parent=1)
    repository.set_serving("m", 1, why="rollback")
    assert repository.was_moved_by("m", "o", 2)
    assert repository.set_serving("m", 2, why="add_class", operation="o", parent=1) == 1
    assert repository.serving("m") == 1
    assert not repository.was_moved_by("m", "o", 1)


def test_was_moved_by_without_serving_revision_is_false(repository: Repository) -> None:
    """A model without serving.json has no moves."""
    assert not repository.was_moved_by("other", "o", 1)


def test_set_serving_with_parent_requires_that_it_serves(repository: Repository) -> None:
    """With ``parent`` the pointer moves only if the parent is the serving revision."""
    again(repository)
    again(repository)
    repository.set_serving("m", 2, why="retrain")
    assert repository.set_serving("m", 3, why="add_class", parent=1) == 2
    assert repository.set_serving("m", 3, why="add_class", parent=2) == 3


def test_a_rejected_revision_never_serves(repository: Repository) -> None:
    """A revision that the gate rejected is NotReady with the reason, and the pointer stays."""
    rejection = Rejection(gate=Gate(), failures=("it lost 5 points",))
    draft = replace(first(repository), rejection=rejection)
    repository.publish(draft, head=HEAD, metrics=metrics(), report=page)
    with pytest.raises(NotReady, match="it lost 5 points") as caught:
        repository.set_serving("m", 2, why="rollback")
    assert caught.value.reason == "REVISION_REJECTED"
    assert repository.serving("m") == 1


def test_history_records_racing_moves(repository: Repository) -> None:
    """Concurrent moves are all recorded, each from the revision that the last one set."""
    numbers = [again(repository).revision for _ in range(8)]

    def move(revision: int) -> None:
        Repository(repository.root).set_serving("m", revision, why="race")
        Repository(repository.root).pin("m", revision, pinned=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(move, numbers))
    state = repository.serving_state("m")
    assert sorted(move.revision for move in state.moves) == [1, *numbers]
    revisions = [move.revision for move in state.moves]
    assert [move.previous for move in state.moves] == [0, *revisions[:-1]]
    assert state.pinned == tuple(numbers)


def test_pin_and_unpin(repository: Repository) -> None:
    """Pins are sorted and unique; they change neither the serving revision nor the history."""
    again(repository)
    before = repository.serving_state("m")
    repository.pin("m", 2, pinned=True)
    repository.pin("m", 2, pinned=True)
    assert repository.pin("m", 1, pinned=True) == replace(before, pinned=(1, 2))
    assert repository.pin("m", 1, pinned=False) == replace(before, pinned=(2,))
    assert repository.serving_state("m").pinned == (2,)


def test_pin_of_an_unknown_revision_is_not_found(repository: Repository) -> None:
    """Only existing revisions can be pinned; a deleted revision can be unpinned."""
    with pytest.raises(NotFound, match="models/m/revisions/2"):
        repository.pin("m", 2, pinned=True)
    again(repository)
    repository.pin("m", 2, pinned=True)
    shutil.rmtree(repository.root / "models" / "m" / "2")
    assert repository.pin("m", 2, pinned=False).pinned == ()
    with pytest.raises(NotFound):
        repository.pin("m", 2, pinned=False)


# Names

BY_NAME: dict[str, Callable[[Repository, str], object]] = {
    "revisions": lambda it, name: it.revisions(name),
    "serving": lambda it, name: it.serving(name),
    "serving_file": lambda it, name: it.root / it.serving_key(name),
    "set_serving": lambda it, name: it.set_serving(name, 1, why="test"),
    "serving_state": lambda it, name: it.serving_state(name),
    "was_moved_by": lambda it, name: it.was_moved_by(name, "o", 1),
    "pin": lambda it, name: it.pin(name, 1, pinned=True),
    "manifest": lambda it, name: it.manifest(name, 1),
    "find": lambda it, name: it.find(name, lambda _manifest: True),
    "head": lambda it, name: it.head(replace(first(it), model=name)),
    "publish": lambda it, name: it.publish(
        replace(first(it), model=name), head=HEAD, metrics=metrics(), report=page
    ),
}


@pytest.mark.parametrize("method", BY_NAME)
@pytest.mark.parametrize("name", ["../m", "m/../m", "/etc/m", "..", "", ".tmp-m", "M"])
def test_model_names_are_never_paths(method: str, name: str, repository: Repository) -> None:
    """Every method refuses a path as model name before it accesses the disk."""
    before = tree(repository.root.parent)
    with pytest.raises(InvalidInput):
        BY_NAME[method](repository, name)
    assert tree(repository.root.parent) == before


def test_backbones_skips_unreadable_backbones(repository: Repository) -> None:
    """A backbone with an invalid backbone.json does not hide the others."""
    other = repository.put_backbone(b"other", tiny.backbone_info(b"other"))
    first(repository)
    ((repository.root / repository.key("backbones", other.digest)) / "backbone.json").write_bytes(
        b"{}"
    )
    assert repository.backbones() == [tiny.backbone_info(BACKBONE)]


@pytest.mark.parametrize("damage", ["truncated", "changed", "link"])
def test_storing_a_damaged_blob_again_repairs_it(damage: str, repository: Repository) -> None:
    """Storing an image, shard or backbone again replaces its damaged file."""
    manifest = first(repository)
    backbone = repository.root / repository.key("backbones", manifest.backbone)
    damaged = [
        (repository.root / repository.key("images", sha256(IMAGE))),
        (repository.root / repository.key("exemplars", manifest.exemplars[0].digest)),
        backbone / "backbone.onnx",
        backbone / "backbone.json",
    ]
    contents = {path: path.read_bytes() for path in damaged}
    shards = repository.exemplars(manifest.exemplars)
    before = check(repository)
    for path, content in contents.items():
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "changed":
            path.write_bytes(b"x" * len(content))
        else:
            path.unlink()
            path.symlink_to("/dev/zero")
    assert len(check(repository)) > len(before)
    repository.put_image(IMAGE)
    repository.put_exemplars(shards)
    repository.put_backbone(BACKBONE, tiny.backbone_info(BACKBONE))
    assert {path: path.read_bytes() for path in damaged} == contents
    assert check(repository) == before


def test_publish_skips_a_number_that_a_crashed_writer_took(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that no reader sees, and that is taken, does not block publishing for ever."""
    create = repository.storage.create

    def taken(directory: str, files: Mapping[str, bytes]) -> None:
        if directory.endswith("/2"):
            raise FileExistsError(directory)
        create(directory, files)

    monkeypatch.setattr(repository.storage, "create", taken)
    assert again(repository).revision == 3
    assert repository.revisions("m") == [1, 3]
