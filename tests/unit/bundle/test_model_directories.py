"""Directories of models: creation, drafts, deletion, and races between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support import stored
from support.signed import new_key, signing

from topwork.bundle.draft import FILE, Draft
from topwork.bundle.maintenance import garbage
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.manifest import Manifest, ShardRef
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository, revision_numbers
from topwork.errors import AlreadyExists, Corrupt, NotFound, QuotaExceeded, TopworkError
from topwork.storage import files
from topwork.storage.storage import Storage


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository of old files, with a serving model ``m``."""
    return stored.repository(tmp_path / "repository")


def draft(repository: Repository, model: str = "new", *shards: str) -> Draft:
    """Return the draft of a model, with a backbone of its own."""
    digest = stored.put_backbone(repository, 7)
    return Draft(
        model=model,
        backbone=digest,
        backbone_info=repository.backbone_info_digest(digest),
        seed=0,
        recipe=Recipe(),
        created=datetime.now(UTC),
        exemplars=tuple(ShardRef(label="a", digest=shard) for shard in shards),
        images=len(shards),
    )


def create(repository: Repository, new: Draft, *, most: int = 100) -> None:
    """Create a model."""
    repository.new_model(new, most=most)


def failure(call: Callable[[], object]) -> TopworkError:
    """Return the error of a call."""
    with pytest.raises(TopworkError) as caught:
        call()
    return caught.value


def test_new_model_is_a_draft_that_does_not_serve(repository: Repository) -> None:
    """It has a draft and is the current state; it has no revision and serving state."""
    new = draft(repository)
    create(repository, new)
    assert repository.draft("new") == repository.current("new") == new
    assert repository.is_draft("new")
    assert repository.model_names() == ["m", "new"]
    assert repository.models() == ["m"]
    assert repository.revisions("new") == []
    with pytest.raises(NotFound):
        repository.serving("new")


def test_serving_model_is_no_draft(repository: Repository) -> None:
    """The current state of a serving model is its manifest, even if it was a draft before."""
    assert repository.current("m") == repository.manifest("m", 3)
    (repository.root / "models" / "m" / FILE).write_bytes(b"{}")
    assert not repository.is_draft("m")
    assert repository.current("m") == repository.manifest("m", 3)


def test_taken_name_is_refused(repository: Repository) -> None:
    """A model with a draft or a revision has its name for itself, and stays as it is."""
    create(repository, draft(repository))
    for name in ("m", "new"):
        before = repository.current(name)
        assert failure(lambda: create(repository, draft(repository, name))).reason == "MODEL_EXISTS"  # noqa: B023  # called at once
        assert repository.current(name) == before


def test_one_of_racing_creations_wins(repository: Repository) -> None:
    """Of eight threads that create one model, one succeeds, and its draft is stored."""
    start = threading.Barrier(8)

    def run(number: int) -> int | None:
        new = replace(draft(repository), seed=number)
        start.wait()
        try:
            create(repository, new)
        except AlreadyExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(run, range(8)) if number is not None]
    assert winners == [repository.draft("new").seed]


def test_number_of_models_is_limited(repository: Repository) -> None:
    """The model beyond the limit is refused; deleted models do not count."""
    create(repository, draft(repository), most=2)
    error = failure(lambda: create(repository, draft(repository, "more"), most=2))
    assert isinstance(error, QuotaExceeded)
    repository.delete_model("new")
    create(repository, draft(repository, "more"), most=2)
    with pytest.raises(QuotaExceeded):
        repository.undelete_model("new", most=2)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", ".deleted-m", "x" * 64])
def test_names_are_never_paths(name: str, repository: Repository) -> None:
    """An invalid name is refused by every method."""
    for call in (
        lambda: create(repository, draft(repository, name)),
        lambda: repository.delete_model(name),
        lambda: repository.undelete_model(name, most=9),
        lambda: repository.draft(name),
    ):
        assert failure(call).reason == "MODEL_NAME_INVALID"


@pytest.mark.parametrize("part", ["backbone", "shard"])
def test_missing_blob_leaves_no_model(part: str, repository: Repository) -> None:
    """A draft whose backbone or shard is not stored is Corrupt, and makes nothing."""
    new = draft(repository)
    if part == "backbone":
        new = replace(new, backbone="0" * 64)
    else:
        new = replace(new, exemplars=(ShardRef(label="a", digest="0" * 64),))
    with pytest.raises(Corrupt, match="is missing"):
        create(repository, new)
    assert repository.model_names() == ["m"]


def test_failed_write_leaves_no_model(repository: Repository) -> None:
    """An error while the directory is filled, such as a full disk, leaves nothing."""
    with pytest.raises(OSError, match="name too long"):
        repository.new_model(draft(repository), {"a" * 300: b""}, most=9)
    assert repository.model_names() == ["m"]
    assert not list((repository.root / "models").glob(f"{files.TEMPORARY}*"))


# Deletion


def test_deleted_model_is_not_found_and_keeps_its_name(repository: Repository) -> None:
    """All methods say that it was deleted; a new model and a fit cannot take its name."""
    before = repository.current("m")
    repository.delete_model("m")
    assert repository.model_names() == []
    for call in (
        lambda: repository.serving("m"),
        lambda: repository.current("m"),
        lambda: repository.revisions("m"),
        lambda: repository.set_serving("m", 1, why="rollback"),
        lambda: repository.delete_model("m"),
        lambda: create(repository, draft(repository, "m")),
        lambda: stored.publish(repository, [stored.put_shard(repository, 1)]),
    ):
        assert failure(call).reason == "MODEL_DELETED"
    repository.undelete_model("m", most=9)
    assert repository.current("m") == before
    assert not [problem for problem in check(repository) if problem.severity == "error"]


def test_undelete_needs_a_deleted_model(repository: Repository) -> None:
    """A model that exists, or never existed, is NotFound."""
    for name in ("m", "other"):
        with pytest.raises(NotFound, match="no deleted model"):
            repository.undelete_model(name, most=9)


def test_change_of_a_deleted_model_does_not_make_it_again(repository: Repository) -> None:
    """A change that publishes after the deletion is NotFound, and leaves no directory."""
    manifest = replace(repository.manifest("m", 3), parent=3, operation="x")
    repository.delete_model("m")
    with pytest.raises(NotFound, match="was deleted"):
        repository.publish(manifest, head=b"h", metrics=stored.METRICS, report=lambda _: b"r")
    assert not (repository.root / "models" / "m").exists()


def test_waiter_for_the_lock_of_a_deleted_model_is_not_found(repository: Repository) -> None:
    """A thread that waits for the lock while the model is deleted does not write to it."""
    deleting, entered = threading.Event(), threading.Event()

    def move() -> None:
        entered.set()
        repository.set_serving("m", 1, why="rollback")

    with ThreadPoolExecutor(1) as pool:
        with files.locked(repository.root / "models" / "m" / ".lock"):
            moving = pool.submit(move)
            entered.wait(30)
            (repository.root / "models" / "m").rename(repository.root / "models" / ".deleted-m")
            deleting.set()
        with pytest.raises(NotFound, match="was deleted"):
            moving.result(30)
    assert not (repository.root / "models" / "m").exists()


# Maintenance


def test_gc_retains_what_a_draft_refers_to(repository: Repository) -> None:
    """Backbone, shard and images of a draft stay; those that it no longer has go."""
    first, second = stored.put_shard(repository, 7), stored.put_shard(repository, 8)
    new = draft(repository, "new", first)
    create(repository, new)
    stored.grow_old(repository)
    collect(repository)
    assert first in repository.stored("exemplars")
    assert second not in repository.stored("exemplars")
    assert files.sha256(stored.image(7)) in repository.stored("images")
    assert new.backbone in repository.stored("backbones")
    assert not check(repository)
    with repository.locked("new"):
        repository.set_draft(new.changed((), 0, "x"), before=new)
    stored.grow_old(repository)
    collect(repository)
    assert first not in repository.stored("exemplars")
    assert new.backbone in repository.stored("backbones")


def test_gc_ignores_the_draft_of_a_serving_model(repository: Repository) -> None:
    """Once the model serves, only its revisions retain shards."""
    shard = stored.put_shard(repository, 7)
    create(repository, draft(repository, "new", shard))
    manifest = stored.publish(repository, [stored.put_shard(repository, 8)], model="new")
    repository.set_serving("new", manifest.revision, why="fit")
    stored.grow_old(repository)
    collect(repository)
    assert shard not in repository.stored("exemplars")


def test_gc_deletes_no_blob_while_a_draft_is_unreadable(repository: Repository) -> None:
    """A damaged draft is reported, and retains everything that it could refer to."""
    shard = stored.put_shard(repository, 7)
    create(repository, draft(repository, "new", shard))
    (repository.root / "models" / "new" / FILE).write_bytes(b"{")
    stored.grow_old(repository)
    found = collect(repository)
    assert "new/draft.json" in found.refused[0]
    assert shard in repository.stored("exemplars")


def test_gc_deletes_a_deleted_model_when_it_is_old(repository: Repository) -> None:
    """Until then it retains its files and name; afterwards both are free."""
    repository.delete_model("m")
    assert not collect(repository, dry_run=True).removed
    assert not collect(repository).removed
    stored.grow_old(repository)
    dry = collect(repository, dry_run=True)
    found = collect(repository)
    assert found == dry
    assert [removed.path for removed in found.removed if removed.kind == "model"] == [
        "models/.deleted-m"
    ]
    assert not repository.stored("exemplars")
    create(repository, draft(repository, "m"))


def test_fsck_reports_a_draft_without_its_shard(repository: Repository) -> None:
    """A missing shard of a draft is an error of draft.json."""
    shard = stored.put_shard(repository, 7)
    create(repository, draft(repository, "new", shard))
    (repository.root / repository.key("exemplars", shard)).unlink()
    errors = [problem for problem in check(repository) if problem.severity == "error"]
    assert [problem.path for problem in errors] == ["models/new/draft.json"]
    assert "not stored" in errors[0].text


def test_fsck_notes_a_deleted_model(repository: Repository) -> None:
    """A deleted model is a note, and its blobs are not orphaned."""
    repository.delete_model("m")
    (note,) = check(repository)
    assert (note.severity, note.path) == ("note", "models/.deleted-m")
    assert "was deleted" in note.text


# Signatures


def test_changed_draft_is_refused_if_signatures_are_required(
    repository: Repository, tmp_path: Path
) -> None:
    """A draft is signed like a manifest: another backbone in it is Corrupt, and so is no signature.

    Otherwise whoever can write the repository could have any graph served under a trusted key.
    """
    key = new_key(tmp_path)
    signed = Repository(repository.root, signing(key, key))
    create(signed, draft(signed))
    assert signed.draft("new").backbone == draft(signed).backbone
    path = repository.root / "models" / "new" / FILE
    other = stored.put_backbone(repository, 8)
    path.write_bytes(path.read_bytes().replace(draft(signed).backbone.encode(), other.encode()))
    assert failure(lambda: signed.draft("new")).reason == "SIGNATURE_INVALID"
    create(repository, draft(repository, "unsigned"))
    assert failure(lambda: signed.draft("unsigned")).reason == "UNSIGNED"


def test_gc_waits_for_a_deletion_before_it_reads_references(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is deleted while gc reads all manifests keeps its files, to be undeleted."""
    deleting = threading.Thread(target=repository.delete_model, args=("m",))
    read = garbage._Run.read_manifests

    def delete_first(storage: Storage, directory: str) -> list[int]:
        if deleting.ident is None:
            deleting.start()
            deleting.join(0.2)
        return revision_numbers(storage, directory)

    def read_during_deletion(run: garbage._Run) -> list[Manifest] | None:
        monkeypatch.setattr(f"{garbage.__name__}.revision_numbers", delete_first)
        return read(run)

    monkeypatch.setattr(garbage._Run, "read_manifests", read_during_deletion)
    collect(repository)
    deleting.join(30)
    repository.undelete_model("m", most=9)
    assert not [problem for problem in check(repository) if problem.severity == "error"]
