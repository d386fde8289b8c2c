"""Whatever is wrong in a repository is found, and named; and nothing else is."""

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
from support.stored import image, publish, put_backbone, put_shard

from topwork.bundle import files
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.documents import to_json
from topwork.bundle.files import ABANDONED_AFTER, TEMPORARY, sha256
from topwork.bundle.maintenance.check import Problem, check
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository, revision_directories


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a sound repository: see ``stored.repository``."""
    return stored.repository(tmp_path / "repository")


def errors(repository: Repository) -> list[Problem]:
    """Return what is wrong."""
    return [one for one in check(repository) if one.severity == "error"]


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


# Soundness


def test_a_sound_repository_has_no_problem(repository: Repository) -> None:
    """What was stored and published by the book is right."""
    assert check(repository) == []


def test_what_a_fit_makes_is_sound(tmp_path: Path) -> None:
    """A repository with a learnt model is right, though no image of it is stored."""
    made = tiny.repository(tmp_path, labels=("amber", "blue"))
    assert not made.stored("images")
    assert check(made) == []


def test_an_empty_repository_is_sound(tmp_path: Path) -> None:
    """A directory that nothing was written to has no problem."""
    assert check(Repository(tmp_path / "none")) == []


def test_missing_images_are_no_problem(repository: Repository) -> None:
    """Uploads need not be kept: what a shard names may be gone."""
    shutil.rmtree(repository.root / "images")
    assert check(repository) == []


def test_checking_changes_nothing(repository: Repository) -> None:
    """Not a byte, a time or a name is another afterwards."""

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in repository.root.rglob("*")}

    before = state()
    check(repository)
    assert state() == before


def test_progress_ends_at_all(repository: Repository) -> None:
    """Progress counts up to the number of revisions, shards, images and backbones."""
    told: list[tuple[int, int]] = []
    check(repository, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 13) for done in range(1, 14)]


# Damage

SHARD = "exemplars/{shard}.npz"
BACKBONE = "backbones/{backbone}"


def place(repository: Repository, text: str) -> Path:
    """Return the path that ``text`` stands for."""
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
    "models/m/serving.json",
]
"""Each file of a repository that has something to verify."""


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_was_cut_off_is_named(file: str, repository: Repository) -> None:
    """Every kind of file that lacks its end is an error at its path."""
    path = place(repository, file)
    path.write_bytes(path.read_bytes()[:-3])
    assert str(path.relative_to(repository.root)) in {one.path for one in errors(repository)}


@pytest.mark.parametrize("file", [one for one in FILES if not one.endswith(("t.json", "g.json"))])
def test_a_flipped_bit_is_named(file: str, repository: Repository) -> None:
    """Every kind of file that has a digest and was changed in a bit is an error at its path."""
    path = place(repository, file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert str(path.relative_to(repository.root)) in {one.path for one in errors(repository)}


@pytest.mark.parametrize(
    ("file", "named"),
    [
        (SHARD, "models/m/3/manifest.json"),
        (f"{BACKBONE}/backbone.onnx", f"{BACKBONE}/backbone.onnx"),
        (f"{BACKBONE}/backbone.json", f"{BACKBONE}/backbone.json"),
        (BACKBONE, "models/m/3/manifest.json"),
        ("models/m/3/manifest.json", "models/m/3/manifest.json"),
        ("models/m/3/head.onnx", "models/m/3/head.onnx"),
        ("models/m/3/metrics.json", "models/m/3/metrics.json"),
        ("models/m/3/report.html", "models/m/3/report.html"),
    ],
)
def test_what_is_missing_is_named(file: str, named: str, repository: Repository) -> None:
    """A file that ought to be there is an error at its path, or at that of what refers to it."""
    path, at = place(repository, file), place(repository, named)
    path.rename(repository.root / "elsewhere")
    found = {one.path: one.text for one in errors(repository)}
    text = found[str(at.relative_to(repository.root))]
    assert "missing" in text or "not stored" in text or "there is no" in text


def test_every_problem_is_found(repository: Repository) -> None:
    """One problem hides no other."""
    for file in FILES:
        if "shard" not in file and "manifest" not in file:
            path = place(repository, file)
            path.write_bytes(b"?" + path.read_bytes())
    found = {one.path for one in errors(repository)}
    assert found >= {
        str(place(repository, file).relative_to(repository.root))
        for file in FILES
        if "shard" not in file and "manifest" not in file
    }


# References


def tampered(change: Callable[[Manifest], Manifest]) -> Callable[[Repository], str]:
    """Return what changes revision 3's manifest and says its path."""

    def tamper(repository: Repository) -> str:
        path = repository.root / "models" / "m" / "3" / "manifest.json"
        path.write_bytes(to_json(change(repository.manifest("m", 3))))
        return "models/m/3/manifest.json"

    return tamper


def pointer(**changes: Any) -> Callable[[Repository], str]:
    """Return what changes serving.json and says its path."""

    def change(repository: Repository) -> str:
        edit(repository.serving_file("m"), **changes)
        return "models/m/serving.json"

    return change


def infinite(repository: Repository) -> str:
    """Let revision 5 refer to a shard whose embeddings are not finite."""
    shard = repository.shard(put_shard(repository, 5, 6))
    wide = np.array(shard.embeddings)
    wide[1, 7] = np.inf
    digest = repository.put_shard(replace(shard, embeddings=wide))
    publish(repository, [digest])
    return f"exemplars/{digest}.npz"


def wide(repository: Repository) -> str:
    """Let revision 5 refer to a shard of another backbone."""
    shard = repository.shard(put_shard(repository, 5))
    other = replace(shard, embeddings=np.zeros((1, 9), np.float32))
    publish(repository, [repository.put_shard(other)])
    return "models/m/5/manifest.json"


def unusable(repository: Repository) -> str:
    """Store a file under the digest of its bytes that is no shard."""
    digest = sha256(b"no shard")
    (repository.root / "exemplars" / f"{digest}.npz").write_bytes(b"no shard")
    return f"exemplars/{digest}.npz"


def rejected(repository: Repository) -> str:
    """Let a rejected revision serve."""
    shards = [ref.digest for ref in repository.manifest("m", 1).exemplars]
    publish(repository, shards, rejection=Rejection(gate=Gate(), failures=("it is worse",)))
    return pointer(revision=5)(repository)


def other_backbone(repository: Repository) -> str:
    """Let backbone.json be about another backbone."""
    path = place(repository, f"{BACKBONE}/backbone.json")
    edit(path, digest="0" * 64)
    return str(path.relative_to(repository.root))


REFERENCES: dict[str, tuple[Callable[[Repository], str], str]] = {
    "serves what is not there": (pointer(revision=9), "revision 9 serves, and is not there"),
    "pinned what is not there": (pointer(pinned=[2, 8]), "revision 8 is pinned, and is not there"),
    "serves what was rejected": (rejected, "was rejected: it is worse"),
    "no revision": (pointer(revision="x"), "cannot be used"),
    "counts": (tampered(lambda one: replace(one, images=7)), "7 images, and its shards have 2"),
    "data": (tampered(lambda one: replace(one, data_digest="0" * 64)), "other images"),
    "labels": (tampered(lambda one: replace(one, labels=("a", "b"))), "('a', 'b')"),
    "another's manifest": (tampered(lambda one: replace(one, revision=2)), "is of m revision 2"),
    "newer schema": (tampered(lambda one: replace(one, schema=9)), "has schema 9"),
    "no backbone": (tampered(lambda one: replace(one, backbone="0" * 64)), f"{'0' * 64}, which is"),
    "other info": (tampered(lambda one: replace(one, backbone_info="0" * 64)), "backbone.json has"),
    "infinite": (infinite, "1 embeddings are not finite, first row 1"),
    "wide": (wide, "embeddings of 9 numbers, and its backbone makes 48"),
    "no shard": (unusable, "is no shard of exemplars"),
    "another backbone": (other_backbone, f"about the backbone {'0' * 64}"),
}


@pytest.mark.parametrize("what", REFERENCES)
def test_what_does_not_agree_is_named(what: str, repository: Repository) -> None:
    """Each kind of disagreement is an error at the file that is wrong, and says what is."""
    harm, said = REFERENCES[what]
    path = harm(repository)
    assert [one for one in errors(repository) if one.path == path and said in one.text]


def test_a_disk_that_does_not_answer_is_a_problem(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the disk cannot read is an error like others, and the rest is checked."""
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


def test_what_is_deleted_meanwhile_is_no_problem(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that is collected between being listed and being read is not missed."""

    def collected(model: Path) -> list[Path]:
        found = revision_directories(model)
        shutil.rmtree(model / "1")
        return found

    monkeypatch.setattr("topwork.bundle.maintenance.check.revision_directories", collected)
    assert errors(repository) == []


# Notes


def note(repository: Repository, path: str) -> str:
    """Return the one note there is, which is about ``path``."""
    (found,) = check(repository)
    assert (found.severity, found.path) == ("note", path)
    return found.text


@pytest.mark.parametrize(
    ("kind", "what", "put"),
    [
        ("exemplars", "2 shards", lambda it, number: put_shard(it, number, put=False)),
        ("images", "2 images", lambda it, number: it.put_image(image(number))),
        ("backbones", "2 backbones", put_backbone),
    ],
)
def test_orphans_are_one_note_a_kind(
    kind: str, what: str, put: Callable[[Repository, int], object], repository: Repository
) -> None:
    """What nothing refers to is counted, with its bytes, and is no error."""

    def size() -> int:
        files = (path for path in (repository.root / kind).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    before = size()
    for number in (7, 8):
        put(repository, number)
    assert f"{what} ({size() - before} bytes)" in note(repository, kind)


def test_orphans_are_not_told_where_references_are_unknown(repository: Repository) -> None:
    """While a manifest cannot be read, nobody knows what is an orphan."""
    put_shard(repository, 7)
    place(repository, "models/m/3/manifest.json").write_bytes(b"{")
    assert {one.severity for one in check(repository)} == {"error"}


def test_a_damaged_orphan_is_an_error(repository: Repository) -> None:
    """What nothing refers to yet is verified: who stores the same again would refer to it."""
    path = repository.path("exemplars", put_shard(repository, 7))
    path.write_bytes(path.read_bytes()[1:])
    (found,) = errors(repository)
    assert found.path == f"exemplars/{path.name}"


def test_leftovers_of_crashes_are_a_note(repository: Repository) -> None:
    """Old temporary names are counted; young ones are somebody's work."""
    left = repository.root / "images" / f"{TEMPORARY}1"
    left.write_bytes(b"half")
    assert check(repository) == []
    then = time.time() - ABANDONED_AFTER - 60
    os.utime(left, (then, then))
    assert "1 temporary names (4 bytes)" in note(repository, ".")


def test_a_model_that_does_not_serve_is_a_note(repository: Repository) -> None:
    """Revisions of which none serves are worth knowing, and no error."""
    repository.serving_file("m").unlink()
    assert "none of them serves" in note(repository, "models/m")


def test_a_copy_made_by_hand_is_a_note(repository: Repository) -> None:
    """A folder that is no model's is said, and what it refers to is no orphan."""
    models = repository.root / "models"
    (models / "m").rename(models / "m (before)")
    assert "no model's name" in note(repository, "models/m (before)")


def test_foreign_files_are_a_note(repository: Repository) -> None:
    """What is not named by a digest is said by name."""
    (repository.root / "images" / "notes.txt").write_bytes(b"mine")
    assert "notes.txt" in note(repository, "images")
