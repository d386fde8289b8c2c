"""Path traversal, symbolic links and pipes: no access outside the repository."""

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

from topwork.bundle.documents import to_json
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound
from topwork.storage import files

OUTSIDE = ["../outside", "..", ".", "/etc", "a/../../outside", "m/1", "", "m\0", "%2e%2e"]


def beside_others(root: Path) -> Repository:
    """Return a repository with four old revisions of ``m``, next to a directory ``outside``."""
    outside = root / "outside"
    (outside / "1").mkdir(parents=True)
    (outside / "serving.json").write_bytes(b"secret")
    (outside / "1" / "manifest.json").write_bytes(b"secret")
    return stored.repository(root / "repository")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository that the test may change."""
    return beside_others(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository that no test changes."""
    return beside_others(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("model", OUTSIDE)
@pytest.mark.parametrize(
    "call",
    [
        lambda it, model: it.revisions(model),
        lambda it, model: it.serving(model),
        lambda it, model: it.root / it.serving_key(model),
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
def test_model_name_with_a_path_is_invalid(
    whole: Repository, model: str, call: Callable[[Repository, str], object]
) -> None:
    """Every method refuses a model name that is a path with InvalidInput."""
    with pytest.raises(InvalidInput, match="model name") as caught:
        call(whole, model)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("digest", [*OUTSIDE, "A" * 64, "a" * 63, "a" * 64 + "/", "a" * 65])
def test_digest_with_a_path_is_corrupt(whole: Repository, digest: str) -> None:
    """Every method refuses an invalid digest, such as from a tampered database."""
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
def test_manifest_with_a_path_as_digest_is_corrupt(repository: Repository, field: str) -> None:
    """A stored manifest with a path in place of a digest is refused."""
    path = repository.root / "models" / "m" / "3" / "manifest.json"
    manifest = repository.manifest("m", 3)
    was = manifest.exemplars[0].digest if field == "exemplars" else getattr(manifest, field)
    path.write_bytes(path.read_bytes().replace(was.encode(), b"../../../../outside/1/manifest"))
    with pytest.raises(Corrupt, match="cannot be used"):
        repository.manifest("m", 3)


@pytest.mark.parametrize("revision", ["0", "-1", "01", "1e3", "\u0661", ".tmp-1", "1 "])
def test_revisions_ignores_other_directory_names(repository: Repository, revision: str) -> None:
    """Directory names that only resemble numbers are no revisions."""
    (repository.root / "models" / "m" / revision).mkdir()
    assert repository.revisions("m") == [1, 2, 3, 4]
    assert all(problem.severity != "error" for problem in check(repository))


@pytest.mark.parametrize("revision", [0, -1, 10**30])
def test_manifest_of_an_unknown_revision_is_not_found(whole: Repository, revision: int) -> None:
    """Numbers that no revision can have are NotFound."""
    with pytest.raises(NotFound):
        whole.manifest("m", revision)


def pipe(path: Path) -> None:
    """Create a named pipe at ``path``."""
    os.mkfifo(path)


def endless(path: Path) -> None:
    """Create a link to /dev/zero at ``path``."""
    path.symlink_to("/dev/zero")


def elsewhere(path: Path) -> None:
    """Create a link to a file outside the repository at ``path``."""
    path.symlink_to("/etc/hostname")


def listener(path: Path) -> None:
    """Create a socket at ``path``."""
    with tempfile.TemporaryDirectory() as short, closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(f"{short}/socket")  # such a path has 107 bytes at most
        Path(short, "socket").rename(path)


@pytest.mark.parametrize("put", [pipe, endless, elsewhere, listener, Path.mkdir])
@pytest.mark.parametrize(
    "name",
    ["models/m/3/manifest.json", "models/m/serving.json", "exemplars/*.npz", "images/*"],
)
def test_read_of_a_special_file_is_corrupt(
    repository: Repository, name: str, put: Callable[[Path], None]
) -> None:
    """A pipe, link, device, socket or directory in place of a file is Corrupt without blocking."""
    path = min(repository.root.glob(name))
    path.unlink()
    put(path)
    with pytest.raises(Corrupt, match="is no regular file"):
        files.read(path)
    relative = str(path.relative_to(repository.root))
    problems = check(repository)
    assert relative in {problem.path for problem in problems if problem.severity == "error"}


def test_directories_may_be_symbolic_links(repository: Repository, tmp_path: Path) -> None:
    """Operators may move images or a model to another disk and link to them."""
    for name in ("images", "exemplars", "models/m"):
        target = tmp_path / name.replace("/", "-")
        (repository.root / name).rename(target)
        (repository.root / name).symlink_to(target)
    manifest = repository.manifest("m", 3)
    assert repository.shards(manifest.exemplars)
    assert not check(repository)


def test_collect_deletes_links_but_not_their_targets(
    repository: Repository, tmp_path: Path
) -> None:
    """A link in place of a revision, blob or temporary name is deleted, its target is not."""
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
    links = [removed for removed in collected.removed if removed.path.endswith(digest)]
    assert sum(link.size for link in links) < 1000


def test_size_does_not_follow_links(tmp_path: Path) -> None:
    """A directory with a link to itself has a finite size."""
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "file").write_bytes(bytes(1000))
    assert 1000 < files.size(tmp_path) < 2000


def test_locked_does_not_follow_links(repository: Repository, tmp_path: Path) -> None:
    """A link in place of a lock file is an error, and its target is unchanged."""
    lock = repository.root / "models" / "m" / ".lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "outside" / "serving.json")
    with pytest.raises(OSError, match="symbolic links"), repository.locked("m"):
        pass
    assert (tmp_path / "outside" / "serving.json").read_bytes() == b"secret"


def test_write_file_replaces_a_link(repository: Repository, tmp_path: Path) -> None:
    """A link in place of serving.json is replaced; its target is unchanged."""
    path = repository.root / repository.serving_key("m")
    state = to_json(repository.serving_state("m"))
    path.unlink()
    path.symlink_to(tmp_path / "outside" / "serving.json")
    files.write_file(path, state)
    assert not path.is_symlink()
    assert (tmp_path / "outside" / "serving.json").read_bytes() == b"secret"
    assert repository.serving("m") == 3
