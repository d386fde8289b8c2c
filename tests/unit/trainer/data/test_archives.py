"""Scan of zip and tar archives, whose members are read in place."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.photo_sets import ROWS, contents, counts, csv, left_out, tarred, write, zip_of, zipped

from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data import archives, spool
from topwork_trainer.data import scan

MEMBERS = {path: b"\0" + path.encode() for path, _ in ROWS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with six files of each of two classes, and files that are left out."""
    write(tmp_path / "photos", [*ROWS, ("__MACOSX/a/1.jpg", ""), ("a/.DS_Store", "")])
    (tmp_path / "photos" / "README").write_text("a data set")
    (tmp_path / "photos" / "a" / "0.mov").write_bytes(b"\0video")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("kind", "option"),
    [("zip", zipfile.ZIP_STORED), ("zip", zipfile.ZIP_DEFLATED), ("zip", zipfile.ZIP_LZMA)]
    + [("tar", mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")],
)
def test_archive_equals_its_folder(folder: Path, kind: str, option: int | str) -> None:
    """Names, labels, contents and left-out files are those of a scan of the folder."""
    path = folder.parent / "archive"  # its content decides, not its name
    if isinstance(option, int):
        zipped(path, folder, compression=option)
    else:
        tarred(path, folder, mode=option)
    photos, expected = scan(path), scan(folder)
    assert contents(photos) == contents(expected)
    assert counts(photos) == counts(expected)
    assert photos.left_out == expected.left_out
    assert kind in {"zip", "tar"}
    assert photos.train[0].path is None
    assert photos.train[0].open().read() == photos.train[0].read()


@pytest.mark.parametrize("below", ["photos/", "some/where/"])
def test_single_top_folder_is_entered(folder: Path, below: str) -> None:
    """An archive of a folder holds the same data as one of the folder's content."""
    zipped(folder.parent / "1.zip", folder, below=below)
    tarred(folder.parent / "1.tar", folder, below=below)
    for name in ("1.zip", "1.tar"):
        photos = scan(folder.parent / name)
        assert counts(photos) == {"a": 6, "b": 6}
        assert photos.train[0].name == f"{below}a/0.jpg"


def test_splits_and_metadata_in_an_archive(tmp_path: Path) -> None:
    """The rules of folders apply: splits are held out, metadata.csv decides the labels."""
    write(
        tmp_path / "data", [(f"{split}/{row[0]}", "") for split in ("train", "val") for row in ROWS]
    )
    assert list(scan(tarred(tmp_path / "1.tar", tmp_path / "data")).held_out) == ["val"]
    rows = [*ROWS, ("a/9.jpg", "a"), ("../a/0.jpg", "a"), ("/etc/passwd", "a")]
    metadata = {"metadata.csv": csv(rows, "file_name,label").encode()}
    photos = scan(zip_of(tmp_path / "1.zip", {**MEMBERS, **metadata}))
    assert counts(photos) == {"a": 6, "b": 6}
    assert left_out(photos)["missing"] == ("../a/0.jpg", "/etc/passwd", "a/9.jpg")


def test_members_are_read_by_several_threads(folder: Path) -> None:
    """Concurrent reads give each photo its own content."""
    for path in (zipped(folder.parent / "1.zip", folder), tarred(folder.parent / "1.tar", folder)):
        photos = scan(path).train * 20
        start = threading.Barrier(4)

        def read(turn: int, photos: tuple[object, ...] = photos, start: object = start) -> bool:
            start.wait()  # type: ignore[attr-defined]  # a barrier
            mine = photos[turn:] + photos[:turn]
            return all(
                photo.read() == b"\0" + photo.name.encode()  # type: ignore[attr-defined]  # a photo
                for photo in mine
            )

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(4)))


# Hostile and damaged archives


@pytest.mark.parametrize(
    "name", ["../a/evil.jpg", "/a/evil.jpg", "a/../../evil.jpg", "..", "C:/evil.jpg"]
)
def test_unsafe_names_are_left_out(tmp_path: Path, name: str) -> None:
    """A member whose name leads out of the archive is listed and never read."""
    zip_of(tmp_path / "1.zip", {**MEMBERS, name: b"\0evil"})
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        for path, content in {**MEMBERS, name: b"\0evil"}.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for photos in (scan(tmp_path / "1.zip"), scan(tmp_path / "1.tar")):
        assert counts(photos) == {"a": 6, "b": 6}
        assert left_out(photos) == {"unsafe": (name,)}


def test_backslashes_of_windows_separate_folders(tmp_path: Path) -> None:
    """Some archives made on Windows have backslashes; ``..`` between them is unsafe, too."""
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as archive:
        for path, content in {**MEMBERS, "a/../../evil.jpg": b"\0evil"}.items():
            info = zipfile.ZipInfo(path.replace("/", "\\"))
            info.create_system = 0
            archive.writestr(info, content)
    photos = scan(tmp_path / "1.zip")
    assert counts(photos) == {"a": 6, "b": 6}
    assert left_out(photos) == {"unsafe": ("a/../../evil.jpg",)}


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    """Links in archives are not followed, and devices are not opened."""
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        archive.add(write(tmp_path / "photos"), ".")
        for name, kind in (
            ("a/soft", tarfile.SYMTYPE),
            ("a/hard", tarfile.LNKTYPE),
            ("a/pipe", tarfile.FIFOTYPE),
            ("a/disk", tarfile.BLKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert left_out(scan(tmp_path / "1.tar")) == {
        "special": ("a/disk", "a/pipe"),
        "link": ("a/hard", "a/soft"),
    }
    zip_of(tmp_path / "1.zip", MEMBERS)
    with zipfile.ZipFile(tmp_path / "1.zip", "a") as zip_archive:
        link = zipfile.ZipInfo("a/soft")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zip_archive.writestr(link, "/etc/passwd")
    assert left_out(scan(tmp_path / "1.zip")) == {"link": ("a/soft",)}


def test_zip_bomb_is_an_error_of_its_member(tmp_path: Path) -> None:
    """A member that expands beyond the limit of images is not expanded."""
    with zipfile.ZipFile(tmp_path / "1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in MEMBERS.items():
            archive.writestr(path, content)
        with archive.open("a/bomb.jpg", "w") as file:
            for _ in range(64):
                file.write(bytes(2**20))
    (bomb,) = (photo for photo in scan(tmp_path / "1.zip").train if photo.name == "a/bomb.jpg")
    with pytest.raises(ImageError, match="has 67108864 bytes; the limit is 16777216") as caught:
        bomb.read()
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_zip_member_that_is_longer_than_declared_is_an_error(tmp_path: Path) -> None:
    """The declared length bounds what is read; the checksum finds the lie."""
    zip_of(tmp_path / "1.zip", MEMBERS)
    raw = bytearray((tmp_path / "1.zip").read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # of the last member, b/5.jpg
    raw[entry + 24 : entry + 28] = (3).to_bytes(4, "little")
    (tmp_path / "1.zip").write_bytes(raw)
    with pytest.raises(ImageError, match="cannot be read from the archive: Bad CRC"):
        scan(tmp_path / "1.zip").train[-1].read()


def test_encrypted_members_are_left_out(tmp_path: Path) -> None:
    """A member with the flag of encryption is listed as unreadable."""
    zip_of(tmp_path / "1.zip", {**MEMBERS, "b/secret.jpg": b"\0"})
    raw = bytearray((tmp_path / "1.zip").read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "1.zip").write_bytes(raw)
    assert left_out(scan(tmp_path / "1.zip")) == {"unreadable": ("b/secret.jpg",)}


def test_compressed_tar_that_expands_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the limit; no more than it is expanded."""
    monkeypatch.setattr(spool, "ALWAYS_EXPANDED", 2**20)
    (tmp_path / "1.tar.gz").write_bytes(gzip.compress(bytes(32 * 2**20)))
    with pytest.raises(InvalidInput, match=r"1\.tar\.gz expands to more than 1,6\d\d,\d{3} bytes"):
        scan(tmp_path / "1.tar.gz")


def test_tar_with_a_huge_header_is_refused(tmp_path: Path) -> None:
    """Extended headers are read into memory, so their length is limited."""
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "1.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(InvalidInput, match="a header of 4294967296 bytes"):
        scan(tmp_path / "1.tar")


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of members is limited."""
    monkeypatch.setattr(archives, "MAX_MEMBERS", 11)
    with pytest.raises(InvalidInput, match="has more than 11 members"):
        scan(zip_of(tmp_path / "1.zip", MEMBERS))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["1.zip", "1.tar", "1.tar.gz"])
def test_truncated_archives_are_refused(folder: Path, name: str, kept: float) -> None:
    """An archive whose end is missing is not read in part without notice."""
    path = folder.parent / name
    if name.endswith("zip"):
        zipped(path, folder)
    else:
        tarred(path, folder, mode="w:gz" if name.endswith("gz") else "w")
        if name == "1.tar":  # without the zeros at its end
            path.write_bytes(path.read_bytes().rstrip(b"\0"))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) // 2 * 2 + 1])
    with pytest.raises(InvalidInput, match=r"cannot be read|is damaged"):
        scan(path)


def test_damaged_header_in_a_tar_archive_is_found(folder: Path) -> None:
    """A damaged header is not taken for the end of the archive."""
    path = tarred(folder.parent / "1.tar", folder)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"ustar") - 257
    content[at : at + 20] = b"x" * 20
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="is damaged"):
        scan(path)


def test_compressed_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    """A compressed manifest is not an archive."""
    (tmp_path / "photos.csv.gz").write_bytes(gzip.compress(csv().encode()))
    with pytest.raises(InvalidInput, match=r"photos\.csv\.gz is damaged, or not a zip or tar"):
        scan(tmp_path / "photos.csv.gz")


def test_names_without_a_declared_encoding_are_utf_8_if_they_can_be(tmp_path: Path) -> None:
    """The Finder stores UTF-8 without its flag; other names are those of code page 437."""
    zip_of(tmp_path / "1.zip", {path.replace("a/", "x\u00e9/"): b"\0" for path in MEMBERS})
    raw = (tmp_path / "1.zip").read_bytes()
    for name, label in (("x\u00e9".encode(), "x\u00e9"), (b"x\x82\x82", "x\u00e9\u00e9")):
        other = bytearray(raw.replace("x\u00e9".encode(), name))
        for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = other.find(magic)
            while at >= 0:
                other[at + place + 1] &= ~8
                at = other.find(magic, at + 1)
        (tmp_path / "1.zip").write_bytes(other)
        assert scan(tmp_path / "1.zip").labels == ("b", label)


def test_member_that_is_also_a_folder_is_a_folder(tmp_path: Path) -> None:
    """Of a file and a folder with the same name the folder is read."""
    assert counts(scan(zip_of(tmp_path / "1.zip", {"a": b"\0", **MEMBERS}))) == {"a": 6, "b": 6}


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    """The error names what is known."""
    (tmp_path / "1.jpg").write_bytes(b"\0photo")
    with pytest.raises(InvalidInput, match=r"not a folder, an archive .* or a manifest"):
        scan(tmp_path / "1.jpg")


def test_zip_member_without_a_name_is_left_out(tmp_path: Path) -> None:
    """Names end at a zero byte; an empty name is no photo."""
    path = zip_of(tmp_path / "1.zip", {**MEMBERS, "nameless": b""})
    path.write_bytes(path.read_bytes().replace(b"nameless", b"\0ameless"))
    assert counts(scan(path)) == {"a": 6, "b": 6}
