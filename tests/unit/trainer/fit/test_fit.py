"""Fit, on a repository that stores a tiny backbone in place of the default one."""

from __future__ import annotations

import errno
import html
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from support import photo_sets, pictures, signed, tiny

from topwork.bundle.comparison import Gate
from topwork.bundle.evaluation_sets import EmbeddedSet, EvaluationSet, EvaluationSets
from topwork.bundle.manifest import GROUPS_SCHEMA, SCHEMA, Manifest
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.changes.jobs import Job, Upload
from topwork.changes.retrain import Trainer
from topwork.errors import Corrupt, InvalidInput, NotFound, NotReady
from topwork.training.evaluation_sets import set_images
from topwork_trainer.backbones import DEFAULT, BackboneChoice
from topwork_trainer.fit import attempts
from topwork_trainer.fit.fit import FitConfig, FitResult, fit
from topwork_trainer.fit.held_out import SplitResult

LABELS = ("amber", "blue", "crimson")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository that stores the tiny backbone as the default one."""
    created = Repository(tmp_path / "repository")
    model = tiny.backbone_model()
    info = replace(tiny.backbone_info(model), identity=BackboneChoice(name=DEFAULT).identity())
    created.put_backbone(model, info)
    return created


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with 12 pictures of each label."""
    for label in LABELS:
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, content in enumerate(pictures.pictures(label, 12)):
            (folder / f"{index:02d}.png").write_bytes(content)
    return tmp_path / "data"


def _fit(repository: Repository, data: Path, **settings: object) -> FitResult:
    config = FitConfig(data=data, model="colours", repository=repository.root)
    return fit(replace(config, **settings), lambda *_: None)  # type: ignore[arg-type]  # test values


def test_fit_publishes_a_serving_revision(repository: Repository, data: Path) -> None:
    """The returned manifest is that of the serving revision."""
    fitted = _fit(repository, data)
    assert repository.serving("colours") == 1
    assert repository.manifest("colours", 1) == fitted.manifest
    assert fitted.manifest.labels == LABELS
    assert fitted.metrics.accuracy > 0.9
    assert fitted.seconds["total"] == pytest.approx(
        sum(value for stage, value in fitted.seconds.items() if stage != "total")
    )


def test_fit_signs_what_it_publishes(repository: Repository, data: Path, tmp_path: Path) -> None:
    """A reader that requires signatures accepts a signed revision and refuses an unsigned one."""
    key = signed.new_key(tmp_path)
    fitted = _fit(repository, data, signing_key=key)
    verifying = Repository(repository.root, signed.signing(None, key, publishes=False))
    assert verifying.manifest("colours", 1) == fitted.manifest
    _fit(repository, data)
    with pytest.raises(Corrupt, match="not signed"):
        verifying.manifest("colours", 2)


def test_keep_images_stores_the_photos_that_are_used(repository: Repository, data: Path) -> None:
    """Without it no photo is stored; with it the photos of all exemplars, and no other file."""
    (data / "amber" / "torn.png").write_bytes(b"no picture")
    _fit(repository, data)
    assert repository.stored("images") == {}
    manifest = _fit(repository, data, keep_images=True).manifest
    exemplars = repository.exemplars(manifest.exemplars)
    contents = {row.tobytes().hex() for row in exemplars.contents}
    assert repository.stored("images").keys() == contents
    first = exemplars.names.index("amber/00.png")
    content = (data / "amber" / "00.png").read_bytes()
    assert repository.image(exemplars.contents[first].tobytes().hex()) == content


def test_preview_pixels_reach_photos_that_are_added_later(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """The manifest has the size, a change keeps it, and the cache does not mix sizes."""

    def sizes(manifest: Manifest, label: str) -> set[tuple[int, int]]:
        exemplars = repository.exemplars(manifest.exemplars)
        own = exemplars.where(exemplars.targets == exemplars.labels.index(label))
        return {Image.open(io.BytesIO(jpeg)).size for jpeg in own.thumbnails}

    usual = _fit(repository, data, cache=tmp_path / "cache").manifest
    assert (usual.preview_pixels, sizes(usual, "amber")) == (64, {(64, 64)})
    smaller = _fit(repository, data, cache=tmp_path / "cache", preview_pixels=32).manifest
    assert (smaller.preview_pixels, sizes(smaller, "amber")) == (32, {(32, 32)})
    assert smaller.head == usual.head
    job = Job(
        kind="add_class",
        model="colours",
        label="violet",
        accepted=0.0,
        uploads=tuple(
            Upload(name=f"{number}", digest=repository.put_image(content))
            for number, content in enumerate(pictures.pictures("violet", 8))
        ),
        gate=Gate(max_old_class_drop=1.0, min_new_class_recall=0.0),
    )
    trainer = Trainer(repository, cores=2)
    candidate = trainer.solve(job, trainer.embed(job, lambda *_: None), "operation")
    changed = repository.manifest("colours", candidate.result.revision)
    assert (changed.preview_pixels, sizes(changed, "violet")) == (32, {(32, 32)})


def test_same_data_and_seed_give_the_same_head(repository: Repository, data: Path) -> None:
    """Two fits of the same folders give byte-identical heads; the data digest ignores the seed."""
    first, second = _fit(repository, data), _fit(repository, data)
    assert (first.manifest.revision, second.manifest.revision) == (1, 2)
    assert first.manifest.head == second.manifest.head
    assert first.manifest.data_digest == second.manifest.data_digest
    other = _fit(repository, data, seed=1)
    assert other.manifest.data_digest == first.manifest.data_digest
    assert other.manifest.seed == 1


def test_unusable_files_are_named_and_left_out(repository: Repository, data: Path) -> None:
    """A text file, an empty file and a truncated picture do not stop the fit."""
    (data / "amber" / "notes.jpg").write_text("no picture")
    (data / "blue" / "empty.png").write_bytes(b"")
    whole = (data / "crimson" / "00.png").read_bytes()
    (data / "crimson" / "cut.png").write_bytes(whole[: len(whole) // 2])
    fitted = _fit(repository, data)
    assert {image.name for image in fitted.skipped} == {
        "amber/notes.jpg",
        "blue/empty.png",
        "crimson/cut.png",
    }
    assert fitted.manifest.images == 36


def test_left_out_files_are_returned_and_reported(repository: Repository, data: Path) -> None:
    """System files and dead links do not stop a fit; they are returned and in the report."""
    (data / "amber" / "Thumbs.db").write_text("no picture")
    (data / "blue" / "gone.png").symlink_to("/nonexistent")
    (data / "empty").mkdir()
    fitted = _fit(repository, data)
    assert {group.reason: group.names for group in fitted.left_out} == {
        "system": ("amber/Thumbs.db",),
        "empty": ("empty",),
        "dead_link": ("blue/gone.png",),
    }
    assert (fitted.manifest.images, fitted.skipped) == (36, [])
    assert "blue/gone.png" in Path(fitted.report).read_text()
    with pytest.raises(InvalidInput, match="warnings: 1: 1 dead link was left out"):
        _fit(repository, data, strict=True)
    (data / "blue" / "gone.png").unlink()
    _fit(repository, data, strict=True)


def test_name_that_is_not_utf_8_is_stored_escaped(repository: Repository, data: Path) -> None:
    """The photo is learnt; exemplars, findings and report have its name in printable form."""
    (data / "amber" / "00.png").rename(data / "amber" / "\udcff\n.png")
    (data / "blue" / "\udcfe\x1b.jpg").write_text("no picture")
    fitted = _fit(repository, data)
    names = {
        name for _, shard in repository.shards(fitted.manifest.exemplars) for name in shard.names
    }
    assert "amber/\\xff\\u000a.png" in names
    (skipped,) = fitted.skipped
    assert skipped.name == "blue/\\xfe\\u001b.jpg"
    assert skipped.name in Path(fitted.report).read_text()


# Splits


def _judged(repository: Repository, data: Path, name: str) -> SplitResult:
    (result,) = [split for split in _fit(repository, data).held_out if split.split == name]
    return result


@pytest.fixture
def split(data: Path) -> Path:
    """Return a data set of 12 pictures per label in train and 8 per label in val and test."""
    (data.parent / "split").mkdir()
    data.rename(data.parent / "split" / "train")
    for name in ("val", "test"):
        for label in LABELS:
            folder = data.parent / "split" / name / label
            folder.mkdir(parents=True)
            start = {"val": 100, "test": 200}[name]
            for index, content in enumerate(pictures.pictures(label, 8, start=start)):
                (folder / f"{index}.png").write_bytes(content)
    return data.parent / "split"


def test_held_out_splits_are_judged_and_not_trained_on(repository: Repository, split: Path) -> None:
    """The head is that of train/ alone; the accuracy on each other split is in the report."""
    fitted = _fit(repository, split)
    alone = _fit(repository, split / "train")
    assert fitted.manifest.head == alone.manifest.head
    assert fitted.manifest.data_digest == alone.manifest.data_digest
    assert (fitted.manifest.labels, fitted.manifest.images) == (LABELS, 36)
    assert [(split.split, split.images, split.repeated) for split in fitted.held_out] == [
        ("test", 24, 0),
        ("val", 24, 0),
    ]
    for held_out in fitted.held_out:
        assert held_out.interval is not None
        accuracy, low, high = held_out.interval
        assert 0.9 < accuracy <= high <= 1
        assert low < accuracy
        assert html.escape(str(held_out)) in Path(fitted.report).read_text()
    assert not alone.held_out


def test_held_out_accuracy_uses_the_labels_of_the_split(
    repository: Repository, split: Path
) -> None:
    """Photos in the wrong class folder of a split count as wrong predictions."""
    (split / "val" / "amber").rename(split / "val" / "moved")
    (split / "val" / "blue").rename(split / "val" / "amber")
    (split / "val" / "moved").rename(split / "val" / "blue")
    val = _judged(repository, split, "val")
    assert (val.images, val.right) == (24, 8)


def test_held_out_photos_that_repeat_training_photos_are_not_judged(
    repository: Repository, split: Path
) -> None:
    """A copy, a near-duplicate and a copy with another label are not judged."""
    photo = split / "train" / "amber" / "00.png"
    for label in ("amber", "blue"):
        (split / "val" / label / "copy.png").write_bytes(photo.read_bytes())
    with Image.open(photo) as image:
        image.putpixel((20, 16), (0, 0, 0))
        image.save(split / "val" / "amber" / "again.png")
    (split / "val" / "amber" / "bad.png").write_bytes(b"no picture")
    val = _judged(repository, split, "val")
    assert (val.images, val.repeated) == (24, 3)
    assert [image.name for image in val.skipped] == ["val/amber/bad.png"]
    assert "3 more repeat training photos" in str(val)


def test_split_without_a_judged_photo_stops_no_fit(repository: Repository, split: Path) -> None:
    """If all its photos are damaged or repeat training photos, a sentence says so."""
    for file in (split / "val").glob("*/*"):
        file.write_bytes(b"broken")
    shutil.rmtree(split / "test")
    shutil.copytree(split / "train", split / "test")
    fitted = _fit(repository, split)
    assert [split.interval for split in fitted.held_out] == [None, None]
    assert "No photo of the held-out split test could be judged; 36 more repeat" in str(
        fitted.held_out[0]
    )
    assert len(fitted.held_out[1].skipped) == 24


def test_test_set_is_judged_like_a_held_out_split(repository: Repository, split: Path) -> None:
    """The test set, here an archive, is not trained on; its accuracy is in report and result."""
    archive = photo_sets.zipped(split / "more.zip", split / "test")
    fitted = _fit(repository, split / "train", test=archive)
    alone = _fit(repository, split / "train")
    assert fitted.manifest.head == alone.manifest.head
    (tested,) = fitted.held_out
    assert (tested.split, tested.images, tested.repeated) == ("more.zip", 24, 0)
    assert html.escape(str(tested)) in Path(fitted.report).read_text()


# Layouts and groups


def _manifest(data: Path, groups: int = 4) -> Path:
    """Write a manifest in which every class has ``groups`` groups, which other classes share."""
    rows = [
        (str(file.relative_to(data)), file.parent.name, f"Patient {number % groups}")
        for number, file in enumerate(sorted(data.glob("*/*.png")))
    ]
    (data / "photos.csv").write_text(photo_sets.csv(rows, "path,label,group"))
    return data / "photos.csv"


def test_layouts_give_the_same_model(repository: Repository, data: Path) -> None:
    """A folder, a zip and a tar archive, a manifest and a Parquet file give the same bytes."""
    files = sorted(data.glob("*/*.png"))
    rows = [(f"{file.parent.name}/{file.name}", file.parent.name) for file in files]
    (data.parent / "list").mkdir()
    (data.parent / "list" / "photos.csv").write_text(
        photo_sets.csv([(f"../data/{path}", label) for path, label in rows])
    )
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = pa.table({"image": images, "label": [label for _, label in rows]})
    pq.write_table(table, data.parent / "1.parquet")
    layouts = [
        data,
        photo_sets.zipped(data.parent / "1.zip", data),
        photo_sets.tarred(data.parent / "1.tar.gz", data, mode="w:gz"),
        data.parent / "list" / "photos.csv",
        data.parent / "1.parquet",
    ]
    manifests = [_fit(repository, layout).manifest for layout in layouts]
    assert len({manifest.head for manifest in manifests}) == 1
    assert len({manifest.data_digest for manifest in manifests}) == 1
    assert len({manifest.exemplars for manifest in manifests[:3]}) == 1  # the names differ


def test_groups_are_kept_together_and_reported(repository: Repository, data: Path) -> None:
    """Exemplars have groups, folds keep them together, report and notes say so; no name is kept."""
    fitted = _fit(repository, _manifest(data))
    exemplars = repository.exemplars(fitted.manifest.exemplars)
    folds = exemplars.folds(0)
    assert exemplars.count_groups() == 4
    for group in np.unique(exemplars.groups, axis=0):
        assert len(set(folds[(exemplars.groups == group).all(axis=1)])) == 1
    assert fitted.manifest.schema == GROUPS_SCHEMA
    assert "Folds keep groups together (4 groups)" in fitted.notes
    assert "Folds keep groups together (4 groups)" in Path(fitted.report).read_text()
    assert _fit(repository, data).manifest.schema == SCHEMA
    stored = [path for path in repository.root.rglob("*") if path.is_file()]
    assert not any(b"Patient 1" in path.read_bytes() for path in stored)


def test_groups_survive_changes_of_the_model(repository: Repository, data: Path) -> None:
    """AddClass after a fit with groups gives the head of one fit on everything, byte for byte."""
    whole = _manifest(data)
    rows = whole.read_text().splitlines()
    new = [row.rsplit(",", 1)[0] + "," for row in rows if row.startswith("crimson")]
    old = [row for row in rows if not row.startswith("crimson")]
    whole.write_text("\n".join(old + new))
    expected = _fit(repository, whole).manifest
    (data / "old.csv").write_text("\n".join(old))
    _fit(repository, data / "old.csv")
    uploads = [
        Upload(name=photo.name, digest=repository.put_image(photo.read_bytes()))
        for photo in sorted((data / "crimson").iterdir())
    ]
    job = Job(
        kind="add_class",
        model="colours",
        label="crimson",
        new_label="",
        accepted=0.0,
        uploads=tuple(uploads),
        gate=Gate(max_old_class_drop=1.0, min_new_class_recall=0.0),
        recipe=None,
        expected_revision=0,
        validate_only=False,
    )
    trainer = Trainer(repository, cores=2)
    result = trainer.solve(job, trainer.embed(job, lambda *_: None), "operations/1").result
    added = repository.manifest("colours", result.revision)
    assert (added.head, added.data_digest) == (expected.head, expected.data_digest)
    assert (added.schema, added.parent) == (GROUPS_SCHEMA, 2)
    assert "Folds keep groups together (4 groups)" in repository.report(added).decode()


def test_held_out_photos_of_training_groups_are_not_judged(
    repository: Repository, split: Path
) -> None:
    """A patient in train and test would make the accuracy on the test set too good."""
    rows = []
    for number, file in enumerate(sorted(split.glob("t*/*/*.png"))):
        part, label = file.parts[-3:-1]
        group = "everywhere" if number % 4 == 0 else f"{part} {number % 4}"
        rows.append((str(file.relative_to(split)), label, part, group))
    (split / "photos.csv").write_text(photo_sets.csv(rows, "path,label,split,group"))
    (tested,) = _fit(repository, split / "photos.csv").held_out
    assert (tested.images, tested.related, tested.repeated) == (18, 6, 0)
    assert "6 more belong to groups of training photos" in str(tested)


def test_too_few_usable_images_publish_nothing(repository: Repository, data: Path) -> None:
    """A class with too few readable files is refused with its count, and nothing serves."""
    for file in sorted((data / "blue").iterdir())[4:]:
        file.write_bytes(b"broken")
    with pytest.raises(InvalidInput, match=r"at least 5 usable images .*'blue' has 4"):
        _fit(repository, data)
    assert repository.models() == []


def test_unknown_backbone_is_refused(repository: Repository, data: Path) -> None:
    """An unknown name is refused, and nothing is published."""
    with pytest.raises((InvalidInput, NotFound), match="efficientnet_lite9"):
        _fit(repository, data, backbone="efficientnet_lite9")
    assert repository.models() == []


def test_invalid_model_name_is_refused(repository: Repository, data: Path) -> None:
    """The name of a model cannot be a path outside the repository."""
    with pytest.raises(InvalidInput, match="model name"):
        _fit(repository, data, model="../outside")


def test_recipe_is_stored_in_the_manifest(repository: Repository, data: Path) -> None:
    """The manifest has the recipe, for every later revision, and the chosen head."""
    recipe = Recipe(head="ridge", normalisation="l2")
    manifest = _fit(repository, data, recipe=recipe).manifest
    assert manifest.recipe == recipe
    assert (manifest.chosen.kind, manifest.chosen.normalisation) == ("ridge", "l2")


def test_every_revision_has_its_report(repository: Repository, data: Path) -> None:
    """The report has the command, and the second report a comparison with the first revision."""
    first = _fit(repository, data, command="topwork-train fit 'my photos'")
    assert "topwork-train fit &#39;my photos&#39;" in Path(first.report).read_text()
    second = _fit(repository, data)
    assert first.report != second.report
    assert "revision 1" in Path(second.report).read_text()
    assert repository.report(second.manifest) == Path(second.report).read_bytes()


def test_strict_refuses_findings_of_the_audit(repository: Repository, data: Path) -> None:
    """A strict fit fails for an unreadable file; by default the file is left out."""
    (data / "blue" / "empty.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"blue/empty\.png") as caught:
        _fit(repository, data, strict=True)
    assert caught.value.reason == "AUDIT_FAILED"
    assert repository.models() == []
    assert any(finding.kind == "unreadable" for finding in _fit(repository, data).findings)


def test_suspects_are_dropped_and_listed(repository: Repository, data: Path) -> None:
    """With --drop-suspects the head is that of a fit without the mislabelled photo."""
    wrong = data / "blue" / "wrong.png"
    wrong.write_bytes(pictures.pictures("crimson", 14)[13])
    kept = _fit(repository, data)
    assert not kept.skipped
    dropped = _fit(repository, data, drop_suspects=True)
    (skipped,) = dropped.skipped
    assert (skipped.name, skipped.reason) == ("blue/wrong.png", "SUSPECTED_LABEL")
    assert "looks like 'crimson'" in skipped.message
    assert "Left out: 1 photo whose label is suspected" in dropped.notes
    assert "blue/wrong.png" in Path(dropped.report).read_text()
    wrong.unlink()
    assert _fit(repository, data).manifest.head == dropped.manifest.head != kept.manifest.head


def test_dropped_suspects_must_leave_enough_photos(
    repository: Repository, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class whose photos are mostly suspected stops the fit."""

    def suspect(targets: NDArray[np.int64], _: object) -> list[tuple[int, int]]:
        return [(row, 0) for row in np.flatnonzero(targets == 1).tolist()[4:]]

    monkeypatch.setattr(attempts, "suspects", suspect)
    with pytest.raises(InvalidInput, match="'blue' has 4"):
        _fit(repository, data, drop_suspects=True)
    assert repository.models() == []


def test_cache_does_not_change_the_head(repository: Repository, data: Path, tmp_path: Path) -> None:
    """The head is the same, byte for byte, without a cache, with an empty and with a filled one."""
    caches: list[Path | None] = [None, tmp_path / "cache", tmp_path / "cache"]
    heads = {_fit(repository, data, cache=cache).manifest.head for cache in caches}
    assert len(heads) == 1


def test_full_disk_leaves_the_repository_unchanged(
    repository: Repository, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a revision cannot be written, the previous one remains serving."""
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


def test_evaluation_set_rejects_a_fit(repository: Repository, data: Path, tmp_path: Path) -> None:
    """A fit on exchanged labels is published as rejected; the revision before serves."""
    _fit(repository, data)
    first = repository.manifest("colours", 1)
    labels = first.labels[:2]
    fresh = tiny.embed_pictures(
        {label: pictures.pictures(label, 20, start=900) for label in labels}
    )
    shards = repository.put_exemplars(fresh)
    EvaluationSets(repository, "colours").create(
        EvaluationSet(
            model="colours",
            name="held-out",
            created=first.created,
            max_drop=0.1,
            images=set_images(repository.shards(shards), {}),
            embedded=(EmbeddedSet(backbone=first.backbone, shards=shards),),
        )
    )
    exchanged = tmp_path / "exchanged"
    for label in first.labels:
        other = {labels[0]: labels[1], labels[1]: labels[0]}.get(label, label)
        shutil.copytree(data / label, exchanged / other)
    with pytest.raises(NotReady, match=r"revision 2 .* rejected.*evaluation set 'held-out'"):
        _fit(repository, exchanged)
    assert repository.serving("colours") == 1
    rejection = repository.manifest("colours", 2).rejection
    assert rejection is not None
    assert EvaluationSets(repository, "colours").result("held-out", 2).failure in rejection.failures
