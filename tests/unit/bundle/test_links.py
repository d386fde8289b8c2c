"""Links, pipes and names that lead elsewhere: what is not a repository's own is never touched."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from support import stored

from topwork.bundle import files
from topwork.bundle.documents import to_json
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound

OUTSIDE = ["../outside", "..", ".", "/etc", "a/../../outside", "m/1", "", "m\0", "%2e%2e"]


def beside_others(root: Path) -> Repository:
    """Return a repository with four old revisions of ``m``; beside it lies ``outside``."""
    outside = root / "outside"
    (outside / "1").mkdir(parents=True)
    (outside / "serving.json").write_bytes(b"secret")
    (outside / "1" / "manifest.json").write_bytes(b"secret")
    return stored.repository(root / "repository")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return such a repository."""
    return beside_others(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return such a repository, which stays as it is."""
    return beside_others(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("model", OUTSIDE)
@pytest.mark.parametrize(
    "call",
    [
        lambda it, model: it.revisions(model),
        lambda it, model: it.serving(model),
        lambda it, model: it.serving_file(model),
        lambda it, model: it.was_moved_by(model, "operations/1", 1),
        lambda it, model: it.manifest(model, 1),
        lambda it, model: it.set_serving(model, 1, why="rollback"),
        lambda it, model: it.pin(model, 1, pinned=True),
        lambda it, model: it.publish(
            replace(it.manifest("m", 1), model=model),
            head=b"",
            metrics=stored.METRICS,
            report=lambda _: b"",
        ),
    ],
)
def test_a_model_is_never_a_path(
    whole: Repository, model: str, call: Callable[[Repository, str], object]
) -> None:
    """Whatever asks for a model by a name that leads elsewhere is InvalidInput."""
    with pytest.raises(InvalidInput, match="model name") as caught:
        call(whole, model)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("digest", [*OUTSIDE, "A" * 64, "a" * 63, "a" * 64 + "/", "a" * 65])
def test_a_digest_is_never_a_path(whole: Repository, digest: str) -> None:
    """It is Corrupt, whoever wrote it, such as into the database of operations."""
    for call in (
        whole.image,
        whole.shard,
        whole.backbone_model,
        whole.backbone_info,
        whole.backbone_info_digest,
    ):
        with pytest.raises(Corrupt, match="is not a sha256"):
            call(digest)


@pytest.mark.parametrize("field", ["backbone", "backbone_info", "head", "metrics", "exemplars"])
def test_a_manifest_names_no_paths(repository: Repository, field: str) -> None:
    """A manifest on the disk whose digests lead elsewhere is refused as a whole."""
    path = repository.root / "models" / "m" / "3" / "manifest.json"
    manifest = repository.manifest("m", 3)
    was = manifest.exemplars[0].digest if field == "exemplars" else getattr(manifest, field)
    path.write_bytes(path.read_bytes().replace(was.encode(), b"../../../../outside/1/manifest"))
    with pytest.raises(Corrupt, match="cannot be used"):
        repository.manifest("m", 3)


@pytest.mark.parametrize("revision", ["0", "-1", "01", "1e3", "\u0661", ".tmp-1", "1 "])
def test_a_revision_is_a_plain_number(repository: Repository, revision: str) -> None:
    """Directories whose names only look like numbers are no revisions."""
    (repository.root / "models" / "m" / revision).mkdir()
    assert repository.revisions("m") == [1, 2, 3, 4]
    assert not [one for one in check(repository) if one.severity == "error"]


@pytest.mark.parametrize("revision", [0, -1, 10**30])
def test_a_revision_that_is_none(whole: Repository, revision: int) -> None:
    """Any other number is NotFound."""
    with pytest.raises(NotFound):
        whole.manifest("m", revision)


def pipe(path: Path) -> None:
    """Put a pipe there."""
    os.mkfifo(path)


def endless(path: Path) -> None:
    """Put a link to a device without end there."""
    path.symlink_to("/dev/zero")


def elsewhere(path: Path) -> None:
    """Put a link to a file outside there."""
    path.symlink_to("/etc/hostname")


def listener(path: Path) -> None:
    """Put a socket there."""
    with tempfile.TemporaryDirectory() as short, closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(f"{short}/socket")  # such a path has 107 bytes at most
        Path(short, "socket").rename(path)


@pytest.mark.parametrize("put", [pipe, endless, elsewhere, listener, Path.mkdir])
@pytest.mark.parametrize(
    "name",
    [
        *("models/m/3/manifest.json", "models/m/serving.json", "exemplars/*.npz", "images/*"),
    ],
)
def test_only_regular_files_are_read(
    repository: Repository, name: str, put: Callable[[Path], None]
) -> None:
    """In place of a file anything else is Corrupt at once: nothing is followed or waited for."""
    path = min(repository.root.glob(name))
    path.unlink()
    put(path)
    with pytest.raises(Corrupt, match="is no regular file"):
        files.read(path)
    below = str(path.relative_to(repository.root))
    assert below in {one.path for one in check(repository) if one.severity == "error"}


def test_directories_may_lie_on_other_disks(repository: Repository, tmp_path: Path) -> None:
    """An operator may put images, or a model, elsewhere and link there."""
    for name in ("images", "exemplars", "models/m"):
        there = tmp_path / name.replace("/", "-")
        (repository.root / name).rename(there)
        (repository.root / name).symlink_to(there)
    manifest = repository.manifest("m", 3)
    assert repository.shards(manifest.exemplars)
    assert not check(repository)


def test_garbage_collection_deletes_links_and_not_what_they_lead_to(
    repository: Repository, tmp_path: Path
) -> None:
    """A link in place of a revision, a shard, an image or a temporary name goes; the rest stays."""
    outside = tmp_path / "outside"
    times = {path: path.stat().st_mtime_ns for path in (outside, *outside.rglob("*"))}
    digest = "f" * 64
    for name in (
        *("models/m/.tmp-link", f"images/{digest}", f"backbones/{digest}"),
        f"exemplars/{digest}.npz",
    ):
        link = repository.root / name
        link.symlink_to(outside / "serving.json" if "npz" in name else outside)
        os.utime(link, (0, 0), follow_symlinks=False)
    revision = repository.root / "models" / "m" / "1"
    revision.rename(tmp_path / "first")
    revision.symlink_to(tmp_path / "first")
    os.utime(revision, (0, 0), follow_symlinks=False)
    collected = collect(repository, keep=1)
    assert not any(path.is_symlink() for path in repository.root.rglob("*"))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (tmp_path / "first" / "manifest.json").exists()
    assert sum(one.size for one in collected.removed if one.path.endswith(digest)) < 1000


def test_a_directory_that_contains_itself_has_a_size(tmp_path: Path) -> None:
    """Links are counted, not followed."""
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "file").write_bytes(bytes(1000))
    assert 1000 < files.size(tmp_path) < 2000


def test_a_lock_is_neither_followed_nor_emptied(repository: Repository, tmp_path: Path) -> None:
    """A link in place of a lock file is an error, and what it leads to stays as it is."""
    lock = repository.root / "models" / "m" / ".lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "outside" / "serving.json")
    with pytest.raises(OSError, match="symbolic links"), repository.locked("m"):
        pass
    assert (tmp_path / "outside" / "serving.json").read_bytes() == b"secret"


def test_what_is_published_replaces_a_link_instead_of_following_it(
    repository: Repository, tmp_path: Path
) -> None:
    """A link in place of serving.json is replaced; where it led to nothing is written."""
    path = repository.serving_file("m")
    state = to_json(repository.serving_state("m"))
    path.unlink()
    path.symlink_to(tmp_path / "outside" / "serving.json")
    files.write_file(path, state)
    assert not path.is_symlink()
    assert (tmp_path / "outside" / "serving.json").read_bytes() == b"secret"
    assert repository.serving("m") == 3
