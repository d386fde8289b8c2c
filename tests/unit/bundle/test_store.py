"""A repository holds whole revisions only, whatever races, crashes or was tampered with."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny

from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.documents import to_json
from topwork.bundle.exemplars import Exemplars, make, shard_of
from topwork.bundle.files import ABANDONED_AFTER, TEMPORARY, sha256
from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import ChosenHead, Manifest
from topwork.bundle.metrics import Metrics, evaluate
from topwork.bundle.recipe import Recipe
from topwork.bundle.shards import to_bytes
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound, NotReady

BACKBONE = b"a backbone"
HEAD = b"a head"
IMAGE = b"an image"


def metrics(images: int = 2) -> Metrics:
    """Return metrics that are told apart by their number of images."""
    return evaluate(np.arange(images) % 2, np.eye(2)[np.arange(images) % 2], ("a", "b"), folds=5)


def exemplars(label: str, seed: int) -> Exemplars:
    """Return two exemplars of one label."""
    rng = np.random.default_rng(seed)
    digests, prints = rng.integers(0, 256, (2, 2, 32), dtype=np.uint8)
    return make(rng.normal(size=(2, 3)).astype(np.float32), digests, prints, [label] * 2)


def shard_digest(label: str, seed: int) -> str:
    """Return by what the exemplars of one label are stored."""
    return sha256(to_bytes(shard_of(exemplars(label, seed), label)))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository in which the one revision of model ``m`` serves."""
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
    """Return what stands for a report."""
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
    """Return what tells the files below ``root`` from equal ones that replaced them."""
    return {path.stat().st_ino for path in root.rglob("*")}


# Reading and publishing


def test_a_revision_comes_back_as_it_was_published(repository: Repository) -> None:
    """Head, metrics, backbone, exemplars and image are what was stored."""
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


def test_publishing_fills_in_what_only_it_knows(repository: Repository) -> None:
    """Revision, digests and time are set by publish; all else is the draft's."""
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


def test_revisions_are_numbered_and_immutable(repository: Repository) -> None:
    """Publishing again takes the next number, also past 9, and changes no byte of the others."""
    before = tree(repository.root)
    numbers = [again(repository, f"head {index}".encode()).revision for index in range(2, 13)]
    assert numbers == list(range(2, 13))
    assert repository.revisions("m") == list(range(1, 13))
    after = tree(repository.root)
    assert before.items() <= after.items()


def test_numbers_of_deleted_revisions_are_not_filled(repository: Repository) -> None:
    """The next number is one above the highest, so that 2 never means another revision later."""
    again(repository)
    again(repository)
    shutil.rmtree(repository.root / "models" / "m" / "2")
    assert again(repository).revision == 4


def test_what_is_stored_already_stays_as_it_is(repository: Repository) -> None:
    """Storing the same backbone, exemplars or image again gives the same digest and no new file."""
    before, written = tree(repository.root), inodes(repository.root)
    info = tiny.backbone_info(BACKBONE)
    repository.put_backbone(BACKBONE, replace(info, source="elsewhere"))
    assert repository.put_image(IMAGE) == sha256(IMAGE)
    (ref,) = repository.put_exemplars(exemplars("b", 1))
    assert (ref.label, ref.digest) == ("b", shard_digest("b", 1))
    assert tree(repository.root) == before
    assert inodes(repository.root) == written


def test_the_newest_match_is_found(repository: Repository) -> None:
    """find() returns the newest revision that matches, or None."""
    for operation in ("x", "y", "x", "z"):
        draft = replace(first(repository), operation=operation)
        repository.publish(draft, head=HEAD, metrics=metrics(), report=page)
    found = repository.find("m", lambda manifest: manifest.operation == "x")
    assert found is not None
    assert found.revision == 4
    assert repository.find("m", lambda _manifest: False) is None


@pytest.mark.parametrize("missing", ["backbones", "exemplars"])
def test_a_revision_refers_only_to_what_is_there(missing: str, repository: Repository) -> None:
    """Nothing is published if a shard or the backbone that it refers to is not stored."""
    draft = first(repository)
    (path, *_) = sorted((repository.root / missing).iterdir())
    path.rename(repository.root / "elsewhere")
    with pytest.raises(Corrupt, match=f"{missing}/.* is missing"):
        repository.publish(draft, head=HEAD, metrics=metrics(), report=page)
    assert repository.revisions("m") == [1]
    assert not list(repository.root.rglob(f"{TEMPORARY}*"))


def aged(root: Path) -> dict[Path, int]:
    """Make all that is stored below ``root`` old, and return when it was changed."""
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


@pytest.mark.parametrize("what", STORING)
def test_what_is_stored_again_is_young_again(what: str, repository: Repository) -> None:
    """What came again is not deleted for its age before something refers to it."""
    kind, store = STORING[what]
    before = aged(repository.root)
    store(repository)
    changed = [path for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns]
    assert len(changed) == 1
    assert changed[0].parent.name == kind
    assert abs(changed[0].stat().st_mtime - time.time()) < 60


def test_publishing_makes_young_what_it_refers_to(repository: Repository) -> None:
    """The backbone and the shards of a new revision are young; images are kept by the shards."""
    before = aged(repository.root)
    again(repository)
    old = {
        path.parent.name for path, time_ns in before.items() if path.stat().st_mtime_ns == time_ns
    }
    assert old == {"images"}


# Races


class Racing(Repository):
    """A repository whose first look at the revisions waits until all writers have looked."""

    def __init__(self, root: Path, barrier: threading.Barrier) -> None:
        super().__init__(root)
        self._barrier = barrier
        self._looked = False

    def revisions(self, model: str) -> list[int]:
        """Return the revisions as they were before any of the writers published."""
        found = super().revisions(model)
        if not self._looked:
            self._looked = True
            self._barrier.wait(timeout=30)
        return found


def test_racing_writers_get_different_numbers(repository: Repository) -> None:
    """Writers that all saw revision 1 as the last get a number each, and each revision is whole."""
    writers = 4
    barrier = threading.Barrier(writers)
    draft = first(repository)

    def publish(writer: int) -> Manifest:
        return Racing(repository.root, barrier).publish(
            draft, head=f"head {writer}".encode(), metrics=metrics(writer + 2), report=page
        )

    with ThreadPoolExecutor(writers) as pool:
        published = list(pool.map(publish, range(writers)))
    assert sorted(one.revision for one in published) == [2, 3, 4, 5]
    for writer, manifest in enumerate(published):
        assert repository.manifest("m", manifest.revision) == manifest
        assert repository.head(manifest) == f"head {writer}".encode()
        assert repository.metrics(manifest) == metrics(writer + 2)
    assert not list(repository.root.rglob(f"{TEMPORARY}*"))


def test_racing_writers_store_a_backbone_once(tmp_path: Path) -> None:
    """Writers of the same backbone all succeed, and one whole backbone is there."""
    info = tiny.backbone_info(BACKBONE)

    def put(_writer: int) -> None:
        Repository(tmp_path).put_backbone(BACKBONE, info)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(8)))
    assert Repository(tmp_path).backbones() == [info]
    assert Repository(tmp_path).backbone_model(info.digest) == BACKBONE
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


def test_a_disk_that_refuses_is_no_lost_race(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the rename fails, publishing ends with the disk's error."""
    tries = iter(range(3))

    def refuse(_self: Path, _target: Path) -> Path:
        if next(tries, None) is None:
            pytest.fail("it tries for ever")
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="read-only"):
        again(repository)


# Crashes


class PowerCut(BaseException):
    """The machine stops here: no error, and nobody who cleans up."""


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "rename")])
def test_a_half_written_revision_is_invisible(
    owner: object, name: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash while publishing, the model is as before and the number is still free."""

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


def test_a_half_written_backbone_is_invisible(repository: Repository) -> None:
    """What a crashed writer of a backbone left is none of the backbones."""
    left = repository.root / "backbones" / f"{TEMPORARY}1"
    left.mkdir()
    (left / "backbone.json").write_bytes(b"{")
    assert repository.backbones() == [tiny.backbone_info(BACKBONE)]


def test_sweep_deletes_what_crashes_left(repository: Repository) -> None:
    """Old temporary names go from every place that is written to; all else stays."""
    before = tree(repository.root)
    old = time.time() - ABANDONED_AFTER - 60
    left = {
        repository.root / place / f"{TEMPORARY}1"
        for place in ("backbones", "exemplars", "images", "models/m")
    }
    for path in left:
        path.mkdir()
        os.utime(path, times=(old, old))
    assert set(repository.sweep()) == left
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
"""What reads each of the files that are verified."""


@pytest.mark.parametrize("file", READS)
@pytest.mark.parametrize("harm", ["changed", "cut off", "missing"])
def test_harmed_files_are_corrupt_by_name(file: str, harm: str, repository: Repository) -> None:
    """A file that was changed in one bit, cut off or deleted is Corrupt, and named."""
    path = repository.root / file
    content = bytearray(path.read_bytes())
    READS[file](repository)
    match harm:
        case "changed":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "cut off":
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
        {"schema": 4},
        {"revision": 2},
        {"model": "other"},
        {"labels": None},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be_is_corrupt(
    changes: dict[str, Any], repository: Repository
) -> None:
    """Digests that are none, another's manifest, and a newer schema are Corrupt, and named."""
    edit(repository, **changes)
    with pytest.raises(Corrupt, match=r"models/m/1/manifest\.json"):
        first(repository)


def test_a_newer_schema_is_said(repository: Repository) -> None:
    """Software that is too old says which schema it found and which it reads."""
    edit(repository, schema=4)
    with pytest.raises(Corrupt, match="schema 4; this software reads 3"):
        first(repository)


def test_a_missing_backbone_has_no_info(repository: Repository) -> None:
    """The digest of backbone.json is only had of a backbone that is stored."""
    with pytest.raises(Corrupt, match=r"backbone\.json is missing"):
        repository.backbone_info_digest("0" * 64)


# Serving


def test_the_serving_pointer_moves(repository: Repository) -> None:
    """Publishing alone serves nothing new; set_serving moves forward and back."""
    again(repository)
    assert repository.serving("m") == 1
    repository.set_serving("m", 2, why="test")
    assert repository.serving("m") == 2
    repository.set_serving("m", 1, why="test")
    assert repository.serving("m") == 1


def test_only_what_was_published_can_serve(repository: Repository) -> None:
    """A revision that does not exist is NotFound by name, and the pointer stays."""
    with pytest.raises(NotFound) as caught:
        repository.set_serving("m", 2, why="test")
    assert (caught.value.kind, caught.value.resource) == ("revision", "models/m/revisions/2")
    assert repository.serving("m") == 1


def test_a_corrupt_revision_cannot_serve(repository: Repository) -> None:
    """The pointer never moves to a revision whose manifest cannot be read."""
    again(repository)
    (repository.root / "models" / "m" / "2" / "manifest.json").write_bytes(b"{")
    with pytest.raises(Corrupt):
        repository.set_serving("m", 2, why="test")
    assert repository.serving("m") == 1


@pytest.mark.parametrize("content", [b"", b"{}", b'{"revision": "1"}', b"\0" * 20])
def test_a_broken_pointer_is_corrupt(content: bytes, repository: Repository) -> None:
    """A serving.json that says no revision is Corrupt, and named."""
    repository.serving_file("m").write_bytes(content)
    with pytest.raises(Corrupt, match=r"m/serving\.json"):
        repository.serving("m")


def test_models_are_those_that_serve(repository: Repository) -> None:
    """A model counts from the moment when a revision of it serves; names are sorted."""
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
    """A directory that nothing was written to is a repository without models."""
    assert Repository(tmp_path / "none").models() == []
    assert Repository(tmp_path / "none").backbones() == []
    with pytest.raises(NotFound):
        Repository(tmp_path / "none").revisions("m")


def test_every_move_is_remembered(repository: Repository) -> None:
    """History says from where to where the pointer went, why, by which operation, and when."""
    again(repository)
    before = datetime.now(UTC)
    repository.set_serving("m", 2, why="add_class", operation="o")
    repository.set_serving("m", 1, why="rollback")
    state = repository.serving_state("m")
    assert state.revision == 1
    assert [(one.previous, one.revision, one.why, one.operation) for one in state.moves] == [
        (0, 1, "fit", ""),
        (1, 2, "add_class", "o"),
        (2, 1, "rollback", ""),
    ]
    assert before <= state.moves[1].time <= state.moves[2].time <= datetime.now(UTC)


def test_what_serves_already_makes_no_move(repository: Repository) -> None:
    """Letting the revision serve that does is no move, whatever parent was expected."""
    again(repository)
    repository.set_serving("m", 2, why="add_class", operation="o", parent=1)
    before = tree(repository.root)
    assert repository.set_serving("m", 2, why="add_class", operation="o", parent=1) == 2
    assert tree(repository.root) == before


def test_an_operation_moves_the_pointer_once(repository: Repository) -> None:
    """An operation that comes again after a crash does not undo the rollback that came since."""
    again(repository)
    assert not repository.was_moved_by("m", "o", 2)
    repository.set_serving("m", 2, why="add_class", operation="o", parent=1)
    repository.set_serving("m", 1, why="rollback")
    assert repository.was_moved_by("m", "o", 2)
    assert repository.set_serving("m", 2, why="add_class", operation="o", parent=1) == 1
    assert repository.serving("m") == 1
    assert not repository.was_moved_by("m", "o", 1)


def test_nothing_moved_a_model_that_does_not_serve(repository: Repository) -> None:
    """A model without serving revision was moved by no operation."""
    assert not repository.was_moved_by("other", "o", 1)


def test_a_move_waits_for_its_parent(repository: Repository) -> None:
    """A revision does not take the place of another one than the parent that it was made from."""
    again(repository)
    again(repository)
    repository.set_serving("m", 2, why="retrain")
    assert repository.set_serving("m", 3, why="add_class", parent=1) == 2
    assert repository.set_serving("m", 3, why="add_class", parent=2) == 3


def test_a_rejected_revision_never_serves(repository: Repository) -> None:
    """What its gate rejected is refused with the reason, and the pointer stays."""
    rejection = Rejection(gate=Gate(), failures=("it lost 5 points",))
    draft = replace(first(repository), rejection=rejection)
    repository.publish(draft, head=HEAD, metrics=metrics(), report=page)
    with pytest.raises(NotReady, match="it lost 5 points") as caught:
        repository.set_serving("m", 2, why="rollback")
    assert caught.value.reason == "REVISION_REJECTED"
    assert repository.serving("m") == 1


def test_racing_moves_are_all_remembered(repository: Repository) -> None:
    """Moves by many threads at once lose nothing: each goes from where the one before ended."""
    numbers = [again(repository).revision for _ in range(8)]

    def move(revision: int) -> None:
        Repository(repository.root).set_serving("m", revision, why="race")
        Repository(repository.root).pin("m", revision, pinned=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(move, numbers))
    state = repository.serving_state("m")
    assert sorted(one.revision for one in state.moves) == [1, *numbers]
    assert [one.previous for one in state.moves] == [0, *(one.revision for one in state.moves[:-1])]
    assert state.pinned == tuple(numbers)


def test_revisions_are_pinned_and_unpinned(repository: Repository) -> None:
    """Pins are sorted, one a revision, and leave what serves and the history alone."""
    again(repository)
    before = repository.serving_state("m")
    repository.pin("m", 2, pinned=True)
    repository.pin("m", 2, pinned=True)
    assert repository.pin("m", 1, pinned=True) == replace(before, pinned=(1, 2))
    assert repository.pin("m", 1, pinned=False) == replace(before, pinned=(2,))
    assert repository.serving_state("m").pinned == (2,)


def test_only_what_was_published_can_be_pinned(repository: Repository) -> None:
    """A pin of a revision that does not exist is NotFound; one that is gone can be unpinned."""
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
    "serving_file": lambda it, name: it.serving_file(name),
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
    """Whatever a model is asked for by, a path is refused before the disk is touched."""
    before = tree(repository.root.parent)
    with pytest.raises(InvalidInput):
        BY_NAME[method](repository, name)
    assert tree(repository.root.parent) == before


def test_a_backbone_that_cannot_be_read_is_left_out(repository: Repository) -> None:
    """The others are listed, so a fit finds the export that it can use."""
    other = repository.put_backbone(b"other", tiny.backbone_info(b"other"))
    first(repository)
    (repository.path("backbones", other.digest) / "backbone.json").write_bytes(b"{}")
    assert repository.backbones() == [tiny.backbone_info(BACKBONE)]


@pytest.mark.parametrize("harm", ["cut", "changed", "link"])
def test_storing_again_repairs_what_is_damaged(harm: str, repository: Repository) -> None:
    """An image, a shard and a backbone that are not what they were are replaced by the same."""
    manifest = first(repository)
    backbone = repository.path("backbones", manifest.backbone)
    damaged = [
        repository.path("images", sha256(IMAGE)),
        repository.path("exemplars", manifest.exemplars[0].digest),
        backbone / "backbone.onnx",
        backbone / "backbone.json",
    ]
    kept = {path: path.read_bytes() for path in damaged}
    shards = repository.exemplars(manifest.exemplars)
    before = check(repository)
    for path, content in kept.items():
        if harm == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "changed":
            path.write_bytes(b"x" * len(content))
        else:
            path.unlink()
            path.symlink_to("/dev/zero")
    assert len(check(repository)) > len(before)
    repository.put_image(IMAGE)
    repository.put_exemplars(shards)
    repository.put_backbone(BACKBONE, tiny.backbone_info(BACKBONE))
    assert {path: path.read_bytes() for path in damaged} == kept
    assert check(repository) == before
