"""Cache of exported backbones: hits, invalidation, damage and size."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from support import pictures, tiny

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork_trainer import backbones
from topwork_trainer.backbones import DEFAULT, BackboneChoice, prepare
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.fit.fit import FitConfig, fit

MODEL = tiny.backbone_model()
INFO = replace(tiny.backbone_info(MODEL), identity=BackboneChoice(name=DEFAULT).identity())


def no_export(*_: object) -> NoReturn:
    """Stand in for an export that must not happen."""
    raise AssertionError("unexpected export")


def test_find_returns_the_stored_export(tmp_path: Path) -> None:
    """Another instance finds an export under its identity and weights, and no other."""
    Exports(tmp_path).put(MODEL, INFO)
    Exports(tmp_path).put(MODEL, INFO, "digest")
    exports = Exports(tmp_path)
    assert exports.find(INFO.identity) == (MODEL, INFO)
    assert exports.find(INFO.identity, "digest") == (MODEL, INFO)
    assert exports.find(INFO.identity, "other") is None
    assert exports.find(BackboneChoice(name=DEFAULT, views=2).identity()) is None


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_find_ignores_exports_of_other_package_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """After an upgrade of torch or its exporter the cache misses."""
    Exports(tmp_path).put(MODEL, INFO)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == package else real(name))
    assert Exports(tmp_path).find(INFO.identity) is None


def test_find_ignores_exports_of_other_source_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of the code that builds and exports backbones the cache misses."""
    Exports(tmp_path).put(MODEL, INFO)
    real = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: real(path) + b"#" * (path.name == "export.py")
    )
    assert Exports(tmp_path).find(INFO.identity) is None


@pytest.mark.parametrize("place", [0, 100, -1])
def test_find_ignores_a_damaged_export(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    """A flipped bit in digest, description or graph is a miss; the next put repairs it."""
    exports = Exports(tmp_path)
    exports.put(MODEL, INFO)
    (file,) = (tmp_path / "exports").iterdir()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert exports.find(INFO.identity) is None
    assert "damaged" in caplog.text
    exports.put(MODEL, INFO)
    assert exports.find(INFO.identity) == (MODEL, INFO)


def test_unwritable_directory_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file in place of the directory causes warnings and no error."""
    (tmp_path / "exports").write_text("a file")
    exports = Exports(tmp_path)
    with caplog.at_level(logging.WARNING):
        exports.put(MODEL, INFO)
        assert exports.find(INFO.identity) is None
    assert "continuing without" in caplog.text


def test_put_deletes_the_least_recently_used_export(tmp_path: Path) -> None:
    """Above the size limit the least recently found export is deleted."""
    Exports(tmp_path).put(MODEL, replace(INFO, identity="a"))
    (file,) = (tmp_path / "exports").iterdir()
    exports = Exports(tmp_path, limit_bytes=3 * file.stat().st_size)
    for name in "bc":
        exports.put(MODEL, replace(INFO, identity=name))
    assert exports.find("a") is not None
    exports.put(MODEL, replace(INFO, identity="d"))
    assert [name for name in "abcd" if exports.find(name)] == ["a", "c", "d"]


def test_a_second_repository_needs_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached export is copied into a new repository."""
    exports = Exports(tmp_path)
    exports.put(MODEL, INFO)
    monkeypatch.setattr(prepare, "store", no_export)
    monkeypatch.setattr(backbones, "load", no_export)
    repository = Repository(tmp_path / "repository")
    assert prepare_backbone(repository, BackboneChoice(name=DEFAULT), exports) == INFO
    assert repository.backbone_model(INFO.digest) == MODEL
    with pytest.raises(AssertionError, match="unexpected export"):
        prepare_backbone(Repository(tmp_path / "other"), BackboneChoice(name=DEFAULT))


def test_fits_at_a_time_export_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that begins during another's export waits for it and takes its result."""
    choice, stored = BackboneChoice(name="resnet18"), []

    def store(repository: Repository, _: object) -> BackboneInfo:
        stored.append(repository)
        time.sleep(0.2)  # the others come meanwhile
        return repository.put_backbone(MODEL, replace(INFO, identity=choice.identity()))

    loaded = SimpleNamespace(identity=choice.identity(), weights_sha256="a")
    monkeypatch.setattr(prepare, "store", store)
    monkeypatch.setattr(backbones, "load", lambda _: loaded)

    def run(number: int) -> str:
        repository = Repository(tmp_path / str(number))
        return prepare_backbone(repository, choice, Exports(tmp_path)).digest

    with ThreadPoolExecutor() as pool:
        assert set(pool.map(run, range(3))) == {INFO.digest}
    assert len(stored) == 1


def test_key_has_weights_that_the_identity_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of a torchvision backbone is found only for the weights it was made of."""
    choice, exports = BackboneChoice(name="resnet18"), Exports(tmp_path)
    stored: list[BackboneInfo] = []

    def store(repository: Repository, _: object) -> BackboneInfo:
        stored.append(repository.put_backbone(MODEL, replace(INFO, identity=choice.identity())))
        return stored[-1]

    monkeypatch.setattr(prepare, "store", store)
    for number, (weights, count) in enumerate([("a", 1), ("a", 1), ("b", 2)]):
        loaded = SimpleNamespace(identity=choice.identity(), weights_sha256=weights)
        monkeypatch.setattr(backbones, "load", lambda _, loaded=loaded: loaded)
        prepare_backbone(Repository(tmp_path / str(number)), choice, exports)
        assert len(stored) == count


def test_fit_uses_the_export_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit into a new repository uses the cached export; without a cache it exports."""
    for label in ("amber", "blue"):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, content in enumerate(pictures.pictures(label, 12)):
            (folder / f"{index}.png").write_bytes(content)
    Exports(tmp_path / "cache").put(MODEL, INFO)
    monkeypatch.setattr(backbones, "load", no_export)
    config = FitConfig(
        data=tmp_path / "data",
        model="colours",
        repository=tmp_path / "repository",
        cache=tmp_path / "cache",
    )
    assert fit(config, lambda *_: None).backbone == INFO
    with pytest.raises(AssertionError, match="unexpected export"):
        fit(replace(config, repository=tmp_path / "other", cache=None), lambda *_: None)
