"""The fit, on a repository that holds the default backbone's export already (a tiny stand-in)."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from support import pictures, signed, tiny

from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound
from topwork_trainer.backbones import DEFAULT, Choice
from topwork_trainer.fit import FitConfig, Fitted, fit

LABELS = ("amber", "blue", "crimson")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository in which the tiny backbone passes for the default one."""
    made = Repository(tmp_path / "repository")
    model = tiny.backbone_model()
    info = replace(tiny.backbone_info(model), identity=Choice(name=DEFAULT).identity())
    made.put_backbone(model, info)
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return folders of 12 pictures each."""
    for label in LABELS:
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, content in enumerate(pictures.pictures(label, 12)):
            (folder / f"{index:02d}.png").write_bytes(content)
    return tmp_path / "data"


def _fit(repository: Repository, data: Path, **settings: object) -> Fitted:
    config = FitConfig(data=data, model="colours", repository=repository.root)
    return fit(replace(config, **settings), lambda *_: None)  # type: ignore[arg-type]  # test values


def test_fit_publishes_a_serving_revision(repository: Repository, data: Path) -> None:
    """What fit returns is what the repository serves."""
    fitted = _fit(repository, data)
    assert repository.serving("colours") == 1
    assert repository.manifest("colours", 1) == fitted.manifest
    assert fitted.manifest.labels == LABELS
    assert fitted.metrics.accuracy > 0.9
    assert fitted.seconds["total"] == pytest.approx(
        sum(value for stage, value in fitted.seconds.items() if stage != "total")
    )


def test_fit_signs_what_it_publishes(repository: Repository, data: Path, tmp_path: Path) -> None:
    """With a key the revision can be read by who requires its signature; without one it cannot."""
    key = signed.new_key(tmp_path)
    fitted = _fit(repository, data, signing_key=key)
    demanding = Repository(repository.root, signed.signing(None, key, publishes=False))
    assert demanding.manifest("colours", 1) == fitted.manifest
    _fit(repository, data)
    with pytest.raises(Corrupt, match="not signed"):
        demanding.manifest("colours", 2)


def test_same_data_and_seed_give_the_same_head(repository: Repository, data: Path) -> None:
    """Two fits of the same folders give byte-identical heads; another seed judges differently."""
    first, second = _fit(repository, data), _fit(repository, data)
    assert (first.manifest.revision, second.manifest.revision) == (1, 2)
    assert first.manifest.head == second.manifest.head
    assert first.manifest.data_digest == second.manifest.data_digest
    other = _fit(repository, data, seed=1)
    assert other.manifest.data_digest == first.manifest.data_digest
    assert other.manifest.seed == 1


def test_bad_files_are_named_and_left_out(repository: Repository, data: Path) -> None:
    """A text file, an empty file and a cut-off picture do not stop the fit."""
    (data / "amber" / "notes.txt").write_text("no picture")
    (data / "blue" / "empty.png").write_bytes(b"")
    whole = (data / "crimson" / "00.png").read_bytes()
    (data / "crimson" / "cut.png").write_bytes(whole[: len(whole) // 2])
    fitted = _fit(repository, data)
    assert {one.name for one in fitted.skipped} == {
        "amber/notes.txt",
        "blue/empty.png",
        "crimson/cut.png",
    }
    assert fitted.manifest.images == 36


def test_too_few_usable_images_publish_nothing(repository: Repository, data: Path) -> None:
    """A class whose files are mostly unreadable is refused with its count, and nothing serves."""
    for file in sorted((data / "blue").iterdir())[4:]:
        file.write_bytes(b"broken")
    with pytest.raises(InvalidInput, match=r"at least 5 usable images .*'blue' has 4"):
        _fit(repository, data)
    assert repository.models() == []


def test_unknown_backbone_is_refused(repository: Repository, data: Path) -> None:
    """A name that no catalogue has is refused; nothing is published."""
    with pytest.raises((InvalidInput, NotFound), match="efficientnet_lite9"):
        _fit(repository, data, backbone="efficientnet_lite9")
    assert repository.models() == []


def test_model_name_is_checked_before_work(repository: Repository, data: Path) -> None:
    """A model's name can never leave the repository."""
    with pytest.raises(InvalidInput, match="model name"):
        _fit(repository, data, model="../outside")


def test_the_recipe_is_kept(repository: Repository, data: Path) -> None:
    """What the head was to be chosen from goes into the manifest, for every later revision."""
    recipe = Recipe(head="ridge", normalisation="l2")
    manifest = _fit(repository, data, recipe=recipe).manifest
    assert manifest.recipe == recipe
    assert (manifest.chosen.kind, manifest.chosen.normalisation) == ("ridge", "l2")


def test_every_revision_has_its_report(repository: Repository, data: Path) -> None:
    """The report names the command, and the second one compares with the first."""
    first = _fit(repository, data, command="topwork-train fit 'my photos'")
    assert "topwork-train fit &#39;my photos&#39;" in first.report.read_text()
    second = _fit(repository, data)
    assert first.report != second.report
    assert "revision 1" in second.report.read_text()
    assert repository.report(second.manifest) == second.report.read_bytes()


def test_strict_refuses_what_the_audit_found(repository: Repository, data: Path) -> None:
    """An unreadable file is left out by default, and ends a strict fit before anything serves."""
    (data / "blue" / "empty.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"blue/empty\.png") as caught:
        _fit(repository, data, strict=True)
    assert caught.value.reason == "AUDIT_FAILED"
    assert repository.models() == []
    assert any(one.kind == "unreadable" for one in _fit(repository, data).findings)


def test_a_cache_changes_nothing_but_the_time(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """With an empty cache, a filled one and none, the head is the same to the last byte."""
    caches: list[Path | None] = [None, tmp_path / "cache", tmp_path / "cache"]
    assert len({_fit(repository, data, cache=one).manifest.head for one in caches}) == 1


def test_a_full_disk_leaves_the_repository_as_it_was(
    repository: Repository, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the revision cannot be written, the one before goes on serving."""
    before = _fit(repository, data).manifest

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            _fit(repository, data, seed=1)
    assert repository.serving("colours") == before.revision
    assert repository.revisions("colours") == [1]
    assert _fit(repository, data).manifest.head == before.head
