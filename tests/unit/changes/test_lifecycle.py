"""Creation and copy of models: settings, idempotency, full disks, signatures."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from support.pictures import pictures
from support.signed import new_key, public

from topwork.bundle.documents import to_json
from topwork.bundle.manifest import Manifest
from topwork.bundle.recipe import Recipe
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.store import Repository
from topwork.changes.lifecycle import Lifecycle, NewModel, store_bundled_backbone
from topwork.errors import Corrupt, TopworkError, Unavailable
from topwork.storage import files

ID = str(uuid.UUID(int=7))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with a model ``colours``."""
    return tiny.repository(tmp_path / "repository")


@pytest.fixture
def lifecycle(repository: Repository) -> Lifecycle:
    """Return the lifecycle of its models."""
    return Lifecycle(repository.root, SigningFiles(), most=9)


def reason(call: Callable[[], object]) -> str:
    """Return the reason of a failing call."""
    with pytest.raises(TopworkError) as caught:
        call()
    return caught.value.reason


def served(repository: Repository, model: str) -> Manifest:
    """Return the manifest of the serving revision."""
    return repository.manifest(model, repository.serving(model))


def other_backbone(repository: Repository) -> str:
    """Store a second backbone with the same name and return its digest."""
    model = tiny.busy_backbone_model()
    return repository.put_backbone(model, tiny.backbone_info(model)).digest


def test_backbone_is_found_by_digest_name_model_or_alone(
    repository: Repository, lifecycle: Lifecycle
) -> None:
    """All four ways give the backbone of ``colours``; the settings are stored."""
    expected = served(repository, "colours")
    ways = {"digest": expected.backbone, "name": "tiny", "alone": ""}
    for name, backbone in ways.items():
        lifecycle.create(
            NewModel(name=name, backbone=backbone, seed=3, recipe=Recipe(head="ridge"))
        )
    lifecycle.create(NewModel(name="like", like="colours", seed=3, recipe=Recipe(head="ridge")))
    for name in (*ways, "like"):
        draft = repository.draft(name)
        assert (draft.backbone, draft.backbone_info) == (expected.backbone, expected.backbone_info)
        assert (draft.seed, draft.recipe) == (3, Recipe(head="ridge"))


def test_unknown_and_ambiguous_backbones_are_refused(
    repository: Repository, lifecycle: Lifecycle
) -> None:
    """The error names the backbones that there are, and no model is made."""
    create = lifecycle.create
    assert reason(lambda: create(NewModel(name="a", backbone="0" * 64))) == "BACKBONE_NOT_FOUND"
    assert reason(lambda: create(NewModel(name="a", like="nothing"))) == "NOT_FOUND"
    digest = other_backbone(repository)
    for backbone in ("", "tiny"):
        with pytest.raises(TopworkError, match=digest):
            create(NewModel(name="a", backbone=backbone))
    assert repository.model_names() == ["colours"]
    create(NewModel(name="a", backbone=digest))


def test_empty_repository_says_where_backbones_come_from(tmp_path: Path) -> None:
    """Without a backbone the error names the command that stores one."""
    with pytest.raises(TopworkError, match="topwork-train backbone add"):
        Lifecycle(tmp_path, SigningFiles(), most=9).create(NewModel(name="a"))


def test_repeated_request_succeeds_and_changes_nothing(
    repository: Repository, lifecycle: Lifecycle
) -> None:
    """The same id and settings succeed; other settings or no id do not."""
    lifecycle.create(NewModel(name="a", request_id=ID))
    before = repository.draft("a")
    lifecycle.create(NewModel(name="a", request_id=ID))
    assert repository.draft("a") == before
    assert reason(lambda: lifecycle.create(NewModel(name="a"))) == "MODEL_EXISTS"
    again = NewModel(name="a", request_id=ID, seed=1)
    assert reason(lambda: lifecycle.create(again)) == "REQUEST_ID_REUSED"
    other = NewModel(name="a", request_id=str(uuid.UUID(int=8)))
    assert reason(lambda: lifecycle.create(other)) == "MODEL_EXISTS"
    lifecycle.copy("colours", 0, "b", request_id=ID)
    other_backbone(repository)  # without a digest the backbone would now be ambiguous
    tiny.publish(
        repository,
        "colours",
        tiny.embed_pictures({label: pictures(label, 9) for label in ("blue", "green")}),
    )
    lifecycle.create(NewModel(name="a", request_id=ID))
    lifecycle.copy("colours", 0, "b", request_id=ID)
    assert served(repository, "b").labels == ("amber", "blue", "crimson", "green")
    assert reason(lambda: lifecycle.copy("colours", 1, "b", request_id=ID)) == "REQUEST_ID_REUSED"
    assert reason(lambda: lifecycle.copy("colours", 1, "colours", request_id=ID)) == "MODEL_EXISTS"


def test_copy_has_the_same_bytes(repository: Repository, lifecycle: Lifecycle) -> None:
    """Head, metrics, report and exemplars of the copy are those of the source; it serves."""
    lifecycle.copy("colours", 0, "copy", request_id="")
    source, copy = served(repository, "colours"), served(repository, "copy")
    assert (copy.revision, copy.parent, copy.change) == (1, 0, "copy")
    for field in (
        "head",
        "metrics",
        "report",
        "exemplars",
        "data_digest",
        "seed",
        "recipe",
        "backbone",
    ):
        assert getattr(copy, field) == getattr(source, field)
    assert repository.head(copy) == repository.head(source)
    assert repository.report(copy) == repository.report(source)
    assert [move.why for move in repository.serving_state("copy").moves] == ["copy"]
    assert repository.draft("copy").source == "models/colours/revisions/1"


def test_damaged_revision_is_not_copied(repository: Repository, lifecycle: Lifecycle) -> None:
    """A head that was changed is Corrupt, and there is no copy."""
    (repository.root / "models" / "colours" / "1" / "head.onnx").write_bytes(b"x")
    with pytest.raises(Corrupt, match="was changed"):
        lifecycle.copy("colours", 0, "copy", request_id="")
    assert repository.model_names() == ["colours"]


def test_draft_cannot_be_copied(lifecycle: Lifecycle) -> None:
    """A model that does not serve yet has nothing to copy."""
    lifecycle.create(NewModel(name="a"))
    assert reason(lambda: lifecycle.copy("a", 0, "b", request_id="")) == "MODEL_NOT_READY"


@pytest.mark.parametrize("call", range(1, 9))
def test_disk_that_fills_up_during_a_copy_leaves_nothing(
    call: int, repository: Repository, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fsync in turn fails: the copy is whole, or absent and can be made again."""
    calls = 0
    sync = files._sync

    def fail(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "_sync", fail)
    with pytest.raises(Unavailable, match="No space left"):
        lifecycle.copy("colours", 0, "copy", request_id=ID)
    monkeypatch.undo()
    if call < 8:  # the eighth is after the rename
        assert repository.model_names() == ["colours"]
    lifecycle.copy("colours", 0, "copy", request_id=ID)
    copy = served(repository, "copy")
    assert repository.head(copy) == repository.head(served(repository, "colours"))


def test_new_models_are_signed(repository: Repository, tmp_path: Path) -> None:
    """With keys the copy and the draft are signed; without the required key none is made."""
    key = new_key(tmp_path)
    trusting = SigningFiles(trusted_keys=public(key), signing_key=key)
    Lifecycle(repository.root, trusting, most=9).copy("colours", 0, "copy", request_id="")
    requiring = SigningFiles(trusted_keys=public(key), require_signed=True, signing_key=key)
    Lifecycle(repository.root, requiring, most=9).create(NewModel(name="draft"))
    strict = Repository(repository.root, requiring.read(publishes=True))
    assert served(strict, "copy").revision == 1
    assert strict.draft("draft").signatures is not None
    keyless = Lifecycle(
        repository.root, SigningFiles(trusted_keys=public(key), require_signed=True), most=9
    )
    assert reason(lambda: keyless.create(NewModel(name="x"))) == "NO_SIGNING_KEY"


def test_bundled_backbone_is_stored_only_in_a_repository_without_one(tmp_path: Path) -> None:
    """An empty repository gets it, another keeps its own; a damaged one is Corrupt."""
    model = tiny.backbone_model()
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    (bundled / "backbone.onnx").write_bytes(model)
    (bundled / "backbone.json").write_bytes(to_json(tiny.backbone_info(model)))
    empty = Repository(tmp_path / "empty")
    store_bundled_backbone(empty, bundled)
    assert list(empty.stored("backbones")) == [files.sha256(model)]
    other = Repository(tmp_path / "other")
    digest = other_backbone(other)
    store_bundled_backbone(other, bundled)
    assert list(other.stored("backbones")) == [digest]
    (bundled / "backbone.onnx").write_bytes(b"x")
    store_bundled_backbone(empty, bundled)
    with pytest.raises(Corrupt, match="was changed"):
        store_bundled_backbone(Repository(tmp_path / "third"), bundled)
