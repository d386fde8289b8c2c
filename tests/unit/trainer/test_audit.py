"""Audit of folders of photos, with a tiny backbone in place of the default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageFile
from support import pictures, tiny
from support.heifs import assembled, coded, heic

from topwork.bundle.findings import Finding
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.preprocess import PreprocessSpec
from topwork.training.embed import Skipped
from topwork_trainer import backbones
from topwork_trainer.audit import Audit, AuditConfig, audit, require_clean
from topwork_trainer.audit_files import audit_files
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.cli.audit import audit as command
from topwork_trainer.data import scan

LABELS = ("amber", "blue", "crimson")
SPEC = PreprocessSpec(resize=16, crop=16)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository that stores the tiny backbone as the default one."""
    created = Repository(tmp_path / "repository")
    model = tiny.backbone_model()
    identity = BackboneChoice(name=backbones.DEFAULT).identity()
    created.put_backbone(model, replace(tiny.backbone_info(model), identity=identity))
    return created.root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data folder with 40 pictures of each label."""
    for label in LABELS:
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True)
        for index, content in enumerate(pictures.pictures(label, 40)):
            (folder / f"{index:02d}.png").write_bytes(content)
    return tmp_path / "data"


def _audit(data: Path, repository: Path, classes: Sequence[str] | None = None) -> Audit:
    return audit(AuditConfig(data=data, repository=repository, classes=classes), lambda *_: None)


def _files(data: Path, skipped: Sequence[Skipped] = ()) -> list[Finding]:
    return audit_files(scan(data), skipped, SPEC)


def _only(findings: Sequence[Finding]) -> Finding:
    (found,) = findings
    return found


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


# Whole folders


def test_clean_folders_have_no_findings(repository: Path, data: Path) -> None:
    """The audit counts the images and has no finding."""
    audited = _audit(data, repository)
    assert audited.counts == dict.fromkeys(LABELS, 40)
    assert audited.findings == ()


def test_audit_reports_each_unusable_file_as_error(repository: Path, data: Path) -> None:
    """A text, a truncated picture and a huge one are named; the audit continues with the rest."""
    (data / "amber" / "notes.jpg").write_text("no picture")
    whole = (data / "blue" / "00.png").read_bytes()
    (data / "blue" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (9000, 9000)).save(data / "blue" / "huge.png")
    audited = _audit(data, repository)
    assert [(finding.kind, finding.severity, finding.images) for finding in audited.findings] == [
        ("unreadable", "error", ("amber/notes.jpg",)),
        ("unreadable", "error", ("blue/cut.png",)),
        ("too_large", "error", ("blue/huge.png",)),
    ]
    assert audited.counts == dict.fromkeys(LABELS, 40)


def test_copy_is_a_note_within_its_label_and_a_warning_across_labels(
    repository: Path, data: Path
) -> None:
    """A copy within its label is left out; the same pixels under two labels are a conflict."""
    content = (data / "amber" / "00.png").read_bytes()
    (data / "amber" / "copy.png").write_bytes(content)
    (data / "crimson" / "copy.png").write_bytes(content)
    findings = {finding.kind: finding for finding in _audit(data, repository).findings}
    assert findings["exact_duplicate"].severity == "note"
    assert findings["exact_duplicate"].images == ("amber/copy.png",)
    assert findings["several_labels"].severity == "warning"
    assert findings["several_labels"].images == ("amber/00.png", "crimson/copy.png")


def test_wrong_label_is_suspected(repository: Path, data: Path) -> None:
    """A blue picture labelled amber is found, with the label that it resembles."""
    (data / "amber" / "wrong.png").write_bytes(pictures.picture("blue", 77))
    found = _only(_audit(data, repository).findings)
    assert (found.kind, found.images) == ("suspected_label", ("amber/wrong.png",))
    assert found.labels == ("amber", "blue")


def test_class_with_too_few_images_hides_no_other_finding(repository: Path, data: Path) -> None:
    """A class of three images and an empty class are errors, and so is an unreadable file."""
    for index in range(3, 40):
        (data / "amber" / f"{index:02d}.png").unlink()
    (data / "empty").mkdir()
    (data / "blue" / "notes.jpg").write_text("no picture")
    audited = _audit(data, repository, [*LABELS, "empty"])
    errors = [
        (finding.kind, finding.labels)
        for finding in audited.findings
        if finding.severity == "error"
    ]
    assert errors == [
        ("too_few_images", ("empty",)),
        ("unreadable", ("blue",)),
        ("too_few_images", ("amber",)),
    ]
    assert audited.counts == {"amber": 3, "blue": 40, "crimson": 40, "empty": 0}


def test_class_with_a_single_image_does_not_stop_the_audit(repository: Path, data: Path) -> None:
    """A class of one image cannot be learnt; the only error says so."""
    for index in range(1, 40):
        (data / "amber" / f"{index:02d}.png").unlink()
    audited = _audit(data, repository)
    assert [finding.kind for finding in audited.findings if finding.severity == "error"] == [
        "too_few_images"
    ]


def test_audit_without_a_usable_image_reports_every_file(repository: Path, data: Path) -> None:
    """If no image can be decoded, each file is an error and the audit still ends normally."""
    for file in data.rglob("*.png"):
        file.write_bytes(b"")
    audited = _audit(data, repository)
    assert audited.counts == dict.fromkeys(LABELS, 0)
    kinds = {finding.kind for finding in audited.findings}
    assert kinds == {"unreadable", "too_few_images"}
    assert len(audited.findings) == 123


def test_folder_with_one_class_is_a_finding(repository: Path, data: Path) -> None:
    """Data from which no fit can start is reported as a finding, not raised."""
    found = _only(_audit(data, repository, ["amber"]).findings)
    assert (found.kind, found.severity) == ("unusable_folder", "error")
    assert "1 classes (amber)" in found.message


def test_missing_folder_is_a_finding(repository: Path, tmp_path: Path) -> None:
    """A folder that does not exist is reported as a finding with its name."""
    found = _only(_audit(tmp_path / "nowhere", repository).findings)
    assert (found.kind, found.severity) == ("unusable_folder", "error")
    assert "nowhere" in found.message


def test_findings_are_sorted_by_severity(repository: Path, data: Path) -> None:
    """Errors come first, then warnings, then notes, in the same order on every run."""
    (data / "amber" / "notes.jpg").write_text("no picture")
    (data / "amber" / "small.png").write_bytes(pictures.picture("amber", 50, size=(7, 6)))
    (data / "amber" / "long.png").write_bytes(pictures.picture("amber", 51, size=(120, 30)))
    audited = _audit(data, repository)
    assert [finding.severity for finding in audited.findings] == ["error", "warning", "note"]
    assert _audit(data, repository) == audited


def test_system_files_are_notes_and_dead_links_are_warnings(repository: Path, data: Path) -> None:
    """System files are listed and do no harm; a dead link may have been a photo."""
    for name in ("amber/Thumbs.db", "blue/desktop.ini", "blue/.DS_Store", "blue/notes.txt"):
        (data / name).write_text("no picture")
    for name in ("empty", "__MACOSX"):
        (data / name).mkdir()
    audited = _audit(data, repository)
    require_clean(audited.findings)
    assert [(finding.kind, finding.severity, finding.images) for finding in audited.findings] == [
        ("hidden", "note", ("blue/.DS_Store",)),
        ("system", "note", ("__MACOSX", "amber/Thumbs.db", "blue/desktop.ini")),
        ("text", "note", ("blue/notes.txt",)),
        ("empty", "note", ("empty",)),
    ]
    assert audited.counts == dict.fromkeys(LABELS, 40)
    (data / "blue" / "gone.png").symlink_to("/nonexistent")
    (found,) = [
        finding for finding in _audit(data, repository).findings if finding.severity != "note"
    ]
    assert (found.kind, found.severity) == ("dead_link", "warning")
    assert (found.message, found.images) == ("1 dead link was left out", ("blue/gone.png",))


# Headers


def test_severity_of_a_small_image_depends_on_its_enlargement(data: Path) -> None:
    """Enlarging twice or more is a warning, less is a note; the smallest image is named."""
    for name, short in (("a", 8), ("b", 5), ("c", 9), ("d", 16)):
        picture = pictures.picture("amber", 60, size=(short, short))
        (data / "amber" / f"{name}.png").write_bytes(picture)
    tiny_images, enlarged = _files(data)
    assert (tiny_images.kind, tiny_images.severity) == ("tiny", "warning")
    assert tiny_images.images == ("amber/a.png", "amber/b.png")
    assert "2 of 124 images" in tiny_images.message
    assert "that of amber/b.png has only 5 and is enlarged 3.2 times" in tiny_images.message
    assert (enlarged.kind, enlarged.severity) == ("enlarged", "note")
    assert enlarged.images == ("amber/c.png",)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "gif"])
def test_header_is_read_without_decoding_pixels(
    data: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a header decodes no pixels, whatever the format."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "blue" / f"noise.{kind}")

    def load(image: Image.Image) -> None:
        raise AssertionError(f"{image.format} is decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert _files(data) == []


def test_audit_survives_invalid_heic_metadata(data: Path) -> None:
    """Metadata whose type is not UTF-8 would crash pi-heif and is removed before."""
    content = assembled(
        [coded(heic(Image.new("RGB", (40, 32)))), (b"E\xeaif", bytes(48), [])],
        [(b"cdsc", 2, [1])],
    )
    (data / "blue" / "odd.heic").write_bytes(content)
    assert _files(data) == []


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif", "heic"])
def test_exif_orientation_is_noted(data: Path, kind: str) -> None:
    """An EXIF orientation of 6 is noted in every format that supports orientation."""
    for name, orientation in (("turned", 6), ("upright", 1)):
        path = data / "blue" / f"{name}.{kind}"
        if kind == "heic":
            path.write_bytes(heic(Image.new("RGB", (40, 32)), orientation))
        else:
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.new("RGB", (40, 32)).save(path, exif=exif)
    found = _only(_files(data))
    assert (found.kind, found.severity) == ("turned", "note")
    assert found.images == (f"blue/turned.{kind}",)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_greyscale_among_colour_images_is_noted(data: Path, mode: str) -> None:
    """Each Pillow mode without colour counts as greyscale."""
    Image.new(mode, (40, 32)).save(data / "blue" / "grey.png")
    found = _only(_files(data))
    assert (found.kind, found.severity, found.images) == ("greyscale", "note", ("blue/grey.png",))


def test_greyscale_alone_is_not_noted(tmp_path: Path) -> None:
    """A data set of greyscale images only, such as X-rays, has no finding."""
    for label in LABELS:
        (tmp_path / label).mkdir()
        for index in range(5):
            Image.new("L", (40, 32), index).save(tmp_path / label / f"{index}.png")
    assert _files(tmp_path) == []


def test_elongated_image_is_noted_with_its_visible_share(data: Path) -> None:
    """The central square of an image with sides of 4 to 1 is a quarter of it."""
    Image.new("RGB", (160, 40)).save(data / "blue" / "long.png")
    Image.new("RGB", (40, 79)).save(data / "blue" / "high.png")
    found = _only(_files(data))
    assert (found.kind, found.severity, found.images) == ("elongated", "note", ("blue/long.png",))
    assert "down to 25 %" in found.message


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_animation_is_noted(data: Path, kind: str) -> None:
    """An image with several frames is noted because only the first is used."""
    frames = [Image.new("RGB", (40, 32), colour) for colour in ("red", "green", "blue")]
    file = data / "blue" / f"moving.{kind}"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    found = _only(_files(data))
    assert (found.kind, found.severity) == ("animated", "note")
    assert found.images == (f"blue/moving.{kind}",)


def test_jpeg_with_previews_is_no_animation(data: Path) -> None:
    """The second picture in a phone's JPEG (MPO) is a preview, not a frame."""
    frames = [Image.new("RGB", (40, 32), colour) for colour in ("red", "green")]
    frames[0].save(data / "blue" / "phone.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert _files(data) == []


def test_file_that_disappears_is_a_finding(data: Path) -> None:
    """A file that was deleted after it was embedded is an error."""
    photos = scan(data)
    (data / "blue" / "07.png").unlink()
    found = _only(audit_files(photos, [], SPEC))
    assert (found.kind, found.severity, found.images) == ("unreadable", "error", ("blue/07.png",))
    assert "can no longer be read" in found.message


def test_format_unknown_to_pillow_has_no_header_findings(data: Path) -> None:
    """A usable file of another format, here DICOM, has no finding."""
    (data / "blue" / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    assert _files(data) == []


def test_skipped_file_is_not_opened_again(data: Path) -> None:
    """A file that was skipped has one finding, even if it can no longer be opened."""
    (data / "blue" / "07.png").unlink()
    (data / "blue" / "07.png").symlink_to(data / "blue" / "08.png")
    photos = scan(data)
    (data / "blue" / "07.png").unlink()
    skipped = Skipped(name="blue/07.png", label="blue", reason="IMAGE_UNREADABLE", message="gone")
    found = _only(audit_files(photos, [skipped], SPEC))
    assert found.message == "blue/07.png was left out: gone"


# require_clean and the command


def _finding(severity: str, message: str) -> Finding:
    return Finding(kind="some", severity=severity, message=message, images=(), labels=())  # type: ignore[arg-type]  # test values


def test_require_clean_names_the_worst_findings() -> None:
    """The error has the number of findings and the first three, errors before warnings."""
    findings = [_finding("note", "n"), *(_finding("warning", f"w{i}") for i in range(4))]
    findings.append(_finding("error", "e"))
    with pytest.raises(
        InvalidInput, match="errors: 1, warnings: 4: e; w0; w1; and 2 more"
    ) as caught:
        require_clean(findings)
    assert caught.value.reason == "AUDIT_FAILED"


def test_require_clean_lets_notes_pass() -> None:
    """Findings that are all notes raise nothing."""
    require_clean([_finding("note", "n")])


def test_command_prints_json_with_all_names(repository: Path, data: Path) -> None:
    """--json prints one object with every file name."""
    for index in range(12):
        content = (data / "blue" / f"{index:02d}.png").read_bytes()
        (data / "blue" / f"copy-{index}.png").write_bytes(content)
    result = _run(data, "--repository", repository, "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed["images"] == 120
    assert printed["classes"] == dict.fromkeys(LABELS, 40)
    assert (printed["left_out"], printed["notes"]) == ([], [])
    (found,) = printed["findings"]
    assert found["kind"] == "exact_duplicate"
    assert len(found["images"]) == 12
    assert found["labels"] == ["blue"]


def test_command_shows_at_most_ten_names(repository: Path, data: Path) -> None:
    """Without --json a long list is cut after ten names, with the number of the others."""
    for index in range(12):
        content = (data / "blue" / f"{index:02d}.png").read_bytes()
        (data / "blue" / f"copy-{index}.png").write_bytes(content)
        (data / "amber" / f"bad-{index:02d}.jpg").write_bytes(b"[bold]no picture[/]")
    result = _run(data, "--repository", repository)
    assert result.exit_code == 0
    assert "error amber/bad-09.jpg was left out" in result.stdout
    assert "bad-10" not in result.stdout
    assert "and 2 more findings of kind unreadable" in result.stdout
    assert "note 12 of the files labelled 'blue'" in result.stdout
    assert result.stdout.count("    blue/copy-") == 10
    assert "    and 2 more" in result.stdout


@pytest.mark.parametrize(("severity", "status"), [("error", 1), ("warning", 1), ("note", 0)])
def test_strict_fails_for_errors_and_warnings(
    repository: Path, data: Path, severity: str, status: int
) -> None:
    """With --strict an error or a warning ends with status 1; a note with status 0."""
    sizes = {"error": (0, 0), "warning": (4, 4), "note": (10, 10)}
    width, height = sizes[severity]
    content = pictures.picture("amber", 60, size=(width, height)) if width else b""
    (data / "amber" / "odd.png").write_bytes(content)
    result = _run(data, "--repository", repository, "--strict")
    assert f"{severity} " in result.stdout
    assert result.exit_code == status
    assert _run(data, "--repository", repository).exit_code == 0


# Real photos


@pytest.mark.photos
def test_headers_of_real_photos_have_no_errors(flower_photos: Path) -> None:
    """Photos from cameras have notes about size and shape only; none is unreadable."""
    photos = scan(flower_photos)
    findings = audit_files(photos, [], replace(SPEC, resize=224, crop=224))
    assert {finding.kind for finding in findings} == {"enlarged", "elongated"}
    assert all(len(finding.images) < len(photos.train) / 2 for finding in findings)
