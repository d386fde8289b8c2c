"""The fit, on a repository that holds the default backbone's export already (a tiny stand-in)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import pictures, tiny

from topwork.bundle.store import Repository
from topwork.errors import InvalidInput, NotFound
from topwork_trainer import backbones
from topwork_trainer.fit import FitConfig, Fitted, fit

LABELS = ("amber", "blue", "crimson")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository in which the tiny backbone passes for the default one."""
    made = Repository(tmp_path / "repository")
    model = tiny.backbone_model()
    info = replace(tiny.backbone_info(model), identity=backbones.identity(backbones.DEFAULT))
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
