"""Integrity check: it reports every damage and inconsistency, and nothing else."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import stored, tiny
from support.stored import image, publish, put_backbone, put_quantised_backbone, put_shard

from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.documents import to_json
from topwork.bundle.maintenance.check import Problem, check
from topwork.bundle.manifest import ExpectedEmbeddings
from topwork.bundle.store import Repository, revision_numbers
from topwork.storage import files
from topwork.storage.files import ABANDONED_AFTER, TEMPORARY, sha256
from topwork.storage.storage import Storage


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return an intact repository: see ``stored.repository``."""
    return stored.repository(tmp_path / "repository")


def errors(repository: Repository) -> list[Problem]:
    """Return the errors that the check reports."""
    return [problem for problem in check(repository) if problem.severity == "error"]


def error_paths(repository: Repository) -> set[str]:
    """Return the paths of all errors."""
    return {problem.path for problem in errors(repository)}


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


# Intact repositories


def test_check_of_an_intact_repository_reports_nothing(repository: Repository) -> None:
    """A repository written by ``Repository`` has no problems."""
    assert check(repository) == []


@pytest.mark.slow
def test_check_accepts_a_fit_without_stored_images(tmp_path: Path) -> None:
    """A fitted model has no problems, although fit stores no images."""
    made = tiny.repository(tmp_path, labels=("amber", "blue"))
    assert not made.stored("images")
    assert check(made) == []


def test_check_of_an_empty_repository_reports_nothing(tmp_path: Path) -> None:
    """A directory that does not exist has no problems."""
    assert check(Repository(tmp_path / "none")) == []


def test_missing_images_are_no_problem(repository: Repository) -> None:
    """Images that a shard refers to may be deleted."""
    shutil.rmtree(repository.root / "images")
    assert check(repository) == []


def test_check_changes_nothing(repository: Repository) -> None:
    """No file is added, deleted or modified."""

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in repository.root.rglob("*")}

    before = state()
    check(repository)
    assert state() == before


def test_progress_counts_to_the_total(repository: Repository) -> None:
    """Progress counts up to the number of revisions, shards, images and backbones."""
    progress: list[tuple[int, int]] = []
    check(repository, on_progress=lambda done, total: progress.append((done, total)))
    assert progress == [(done, 13) for done in range(1, 14)]


# Damage

SHARD = "exemplars/{shard}.npz"
BACKBONE = "backbones/{backbone}"


def place(repository: Repository, text: str) -> Path:
    """Return the path of a template such as SHARD."""
    manifest = repository.manifest("m", 3)
    names = {
        "shard": manifest.exemplars[0].digest,
        "backbone": manifest.backbone,
        "image": sha256(image(3)),
    }
    return repository.root / text.format(**names)


FILES = [
    SHARD,
    f"{BACKBONE}/backbone.onnx",
    f"{BACKBONE}/backbone.json",
    "images/{image}",
    "models/m/3/manifest.json",
    "models/m/3/head.onnx",
    "models/m/3/metrics.json",
    "models/m/3/report.html",
    "models/m/3/examples.npz",
    "models/m/serving.json",
]
"""Every kind of file that the check verifies."""


@pytest.mark.parametrize("file", FILES)
def test_truncated_file_is_an_error(file: str, repository: Repository) -> None:
    """A truncated file of every kind is an error with its path."""
    path = place(repository, file)
    path.write_bytes(path.read_bytes()[:-3])
    assert str(path.relative_to(repository.root)) in error_paths(repository)


@pytest.mark.parametrize(
    "file", [file for file in FILES if not file.endswith(("t.json", "g.json"))]
)
def test_flipped_bit_is_an_error(file: str, repository: Repository) -> None:
    """A flipped bit in a file of every kind with a sha256 is an error with its path."""
    path = place(repository, file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert str(path.relative_to(repository.root)) in error_paths(repository)


@pytest.mark.parametrize(
    ("file", "reported"),
    [
        (SHARD, "models/m/3/manifest.json"),
        (f"{BACKBONE}/backbone.onnx", f"{BACKBONE}/backbone.onnx"),
        (f"{BACKBONE}/backbone.json", f"{BACKBONE}/backbone.json"),
        (BACKBONE, "models/m/3/manifest.json"),
        ("models/m/3/manifest.json", "models/m/3/manifest.json"),
        ("models/m/3/head.onnx", "models/m/3/head.onnx"),
        ("models/m/3/metrics.json", "models/m/3/metrics.json"),
        ("models/m/3/report.html", "models/m/3/report.html"),
        ("models/m/3/examples.npz", "models/m/3/examples.npz"),
    ],
)
def test_missing_file_is_an_error(file: str, reported: str, repository: Repository) -> None:
    """A missing file is an error with its path or that of the manifest that refers to it."""
    path, at = place(repository, file), place(repository, reported)
    path.rename(repository.root / "elsewhere")
    found = {problem.path: problem.text for problem in errors(repository)}
    text = found[str(at.relative_to(repository.root))]
    assert "missing" in text or "not stored" in text or "there is no" in text


def test_index_of_other_examples_is_an_error(repository: Repository) -> None:
    """Its sha256 is right, but it does not have the examples of the revision's shards."""
    manifest, other = repository.manifest("m", 3), repository.manifest("m", 2)
    index = repository.examples(other)
    changed = repository.publish(
        manifest,
        head=b"head",
        metrics=repository.metrics(manifest),
        report=lambda _: b"",
        index=index,
    )
    found = {problem.path: problem.text for problem in errors(repository)}
    assert list(found) == [f"models/m/{changed.revision}/examples.npz"]
    assert "do not match the data_digest" in found[f"models/m/{changed.revision}/examples.npz"]


def test_check_reports_all_errors_at_once(repository: Repository) -> None:
    """An error does not hide other errors."""
    for file in FILES:
        if "shard" not in file and "manifest" not in file:
            path = place(repository, file)
            path.write_bytes(b"?" + path.read_bytes())
    assert error_paths(repository) >= {
        str(place(repository, file).relative_to(repository.root))
        for file in FILES
        if "shard" not in file and "manifest" not in file
    }


# References


def tampered(**changes: Any) -> Callable[[Repository], str]:
    """Return a function that changes revision 3's manifest and returns its path."""

    def tamper(repository: Repository) -> str:
        path = repository.root / "models" / "m" / "3" / "manifest.json"
        path.write_bytes(to_json(replace(repository.manifest("m", 3), **changes)))
        return "models/m/3/manifest.json"

    return tamper


def pointer(**changes: Any) -> Callable[[Repository], str]:
    """Return a function that changes serving.json and returns its path."""

    def change(repository: Repository) -> str:
        edit((repository.root / repository.serving_key("m")), **changes)
        return "models/m/serving.json"

    return change


def infinite(repository: Repository) -> str:
    """Publish revision 5 with a shard whose embeddings are not finite."""
    shard = repository.shard(put_shard(repository, 5, 6))
    wide = np.array(shard.embeddings)
    wide[1, 7] = np.inf
    digest = repository.put_shard(replace(shard, embeddings=wide))
    publish(repository, [digest])
    return f"exemplars/{digest}.npz"


def wide(repository: Repository) -> str:
    """Publish revision 5 with a shard of another backbone."""
    shard = repository.shard(put_shard(repository, 5))
    other = replace(shard, embeddings=np.zeros((1, 9), np.float32))
    publish(repository, [repository.put_shard(other)])
    return "models/m/5/manifest.json"


def unusable(repository: Repository) -> str:
    """Store an invalid shard under its correct sha256."""
    digest = sha256(b"no shard")
    (repository.root / "exemplars" / f"{digest}.npz").write_bytes(b"no shard")
    return f"exemplars/{digest}.npz"


def rejected(repository: Repository) -> str:
    """Point serving.json at a rejected revision."""
    shards = [ref.digest for ref in repository.manifest("m", 1).exemplars]
    publish(repository, shards, rejection=Rejection(gate=Gate(), failures=("it is worse",)))
    return pointer(revision=5)(repository)


def other_backbone(repository: Repository) -> str:
    """Change the digest in backbone.json."""
    path = place(repository, f"{BACKBONE}/backbone.json")
    edit(path, digest="0" * 64)
    return str(path.relative_to(repository.root))


REFERENCES: dict[str, tuple[Callable[[Repository], str], str]] = {
    "serving revision does not exist": (pointer(revision=9), "serving revision 9 does not exist"),
    "pinned revision does not exist": (pointer(pinned=[2, 8]), "pinned revision 8 does not exist"),
    "serving revision was rejected": (rejected, "was rejected: it is worse"),
    "pointer without a number": (pointer(revision="x"), "cannot be used"),
    "counts": (tampered(images=7), "images=7, but its shards have 2"),
    "data": (tampered(data_digest="0" * 64), "do not match its data_digest"),
    "labels": (tampered(labels=("a", "b")), "('a', 'b')"),
    "another revision's manifest": (tampered(revision=2), "is for m revision 2"),
    "newer schema": (tampered(schema=9), "has schema 9"),
    "no backbone": (tampered(backbone="0" * 64), f"not stored: {'0' * 64}"),
    "other info": (tampered(backbone_info="0" * 64), "backbone.json has"),
    "infinite": (infinite, "1 embeddings are not finite, first row 1"),
    "wide": (wide, "embeddings of width 9, but its backbone has width 48"),
    "no shard": (unusable, "is not a valid shard"),
    "another backbone": (other_backbone, f"describes the backbone {'0' * 64}"),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_inconsistency_is_an_error(case: str, repository: Repository) -> None:
    """Each kind of inconsistency is an error with path and reason."""
    damage, text = REFERENCES[case]
    path = damage(repository)
    assert [
        problem for problem in errors(repository) if problem.path == path and text in problem.text
    ]


def test_check_continues_after_an_io_error(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the disk cannot read is an error, and the check continues."""
    bad = place(repository, "models/m/3/head.onnx")
    whole = files.open_file

    def opened(path: Path) -> io.BufferedReader:
        if path == bad:
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr(files, "open_file", opened)
    (problem,) = errors(repository)
    assert problem.path == "models/m/3/head.onnx"
    assert "Input/output error" in problem.text


def test_revision_deleted_during_the_check_is_no_error(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that is deleted after it was listed is not reported as missing."""

    def collected(storage: Storage, model: str) -> list[int]:
        found = revision_numbers(storage, model)
        storage.delete(f"{model}/1")
        return found

    monkeypatch.setattr("topwork.bundle.maintenance.check.revision_numbers", collected)
    assert errors(repository) == []


# Notes


def note(repository: Repository, path: str) -> str:
    """Return the text of the only note, which has this ``path``."""
    (found,) = check(repository)
    assert (found.severity, found.path) == ("note", path)
    return found.text


@pytest.mark.parametrize(
    ("kind", "count", "put"),
    [
        ("exemplars", "2 shards", lambda it, number: put_shard(it, number, put=False)),
        ("images", "2 images", lambda it, number: it.put_image(image(number))),
        ("backbones", "2 backbones", put_backbone),
    ],
)
def test_orphans_are_one_note_per_kind(
    kind: str, count: str, put: Callable[[Repository, int], object], repository: Repository
) -> None:
    """A note has the number and the size of orphaned blobs; they are no error."""

    def size() -> int:
        files = (path for path in (repository.root / kind).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    before = size()
    for number in (7, 8):
        put(repository, number)
    assert f"{count} ({size() - before} bytes)" in note(repository, kind)


def test_twin_is_no_orphan(repository: Repository) -> None:
    """The twin of a backbone in use is in use; one that is not stored is a note."""
    put_backbone(repository, 7)
    int8 = put_quantised_backbone(repository, 8, twin=7)
    publish(repository, [put_shard(repository, 1)], backbone=8)
    assert check(repository) == []
    shutil.rmtree(repository.root / repository.key("backbones", sha256(b"backbone 7")))
    assert "is not stored" in note(repository, f"backbones/{int8}/backbone.json")


def test_added_backbone_is_no_orphan(repository: Repository) -> None:
    """A named backbone is in use; a name without a stored backbone is an error."""
    digest = put_backbone(repository, 7)
    repository.add_backbone("mine", digest)
    assert check(repository) == []
    shutil.rmtree(repository.root / repository.key("backbones", digest))
    (found,) = check(repository)
    assert (found.severity, found.path) == ("error", "backbones/names.json")
    assert "'mine'" in found.text


def test_expected_embeddings_of_another_width_are_an_error(repository: Repository) -> None:
    """They could not be compared with anything."""
    content = b"backbone 8"
    expected = ExpectedEmbeddings(images="noise-1", embeddings=b"1234567")
    repository.put_backbone(content, replace(tiny.backbone_info(content), expected=expected))
    path = f"backbones/{sha256(content)}/backbone.json"
    assert error_paths(repository) == {path}


def test_orphans_are_not_reported_if_a_manifest_is_unreadable(repository: Repository) -> None:
    """With an unreadable manifest the references are unknown, so no blob is called orphaned."""
    put_shard(repository, 7)
    place(repository, "models/m/3/manifest.json").write_bytes(b"{")
    assert {problem.severity for problem in check(repository)} == {"error"}


def test_damaged_orphan_is_an_error(repository: Repository) -> None:
    """Orphaned blobs are verified, since a later revision may refer to them."""
    path = repository.root / repository.key("exemplars", put_shard(repository, 7))
    path.write_bytes(path.read_bytes()[1:])
    (found,) = errors(repository)
    assert found.path == f"exemplars/{path.name}"


def test_old_temporary_files_are_a_note(repository: Repository) -> None:
    """Only old temporary files are reported; new ones may have a live writer."""
    left = repository.root / "images" / f"{TEMPORARY}1"
    left.write_bytes(b"half")
    assert check(repository) == []
    then = time.time() - ABANDONED_AFTER - 60
    os.utime(left, (then, then))
    assert "1 temporary files (4 bytes)" in note(repository, ".")


def test_model_without_serving_revision_is_a_note(repository: Repository) -> None:
    """A missing serving.json is no error."""
    (repository.root / repository.serving_key("m")).unlink()
    assert "no revision serves" in note(repository, "models/m")


def test_manual_copy_of_a_model_is_a_note(repository: Repository) -> None:
    """A directory without a valid model name is reported; its references count."""
    models = repository.root / "models"
    (models / "m").rename(models / "m (before)")
    assert "not a valid model name" in note(repository, "models/m (before)")


def test_unexpected_file_is_a_note(repository: Repository) -> None:
    """A file that is not named by a sha256 is reported by name."""
    (repository.root / "images" / "notes.txt").write_bytes(b"mine")
    assert "notes.txt" in note(repository, "images")
