"""Listing of photo folders, and the report of omitted files."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from PIL import Image

from topwork.errors import ImageError, InvalidInput
from topwork.inputs.folders import LeftOut, group, list_photos, read_photo
from topwork.inputs.splits import splits

MOST = 1000


def _photo(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind)
    return file.getvalue()


def _write(root: Path, *names: str, content: bytes = b"\0photo") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _listed(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the photos below a folder, and omitted files by reason, as relative names."""
    listing = list_photos(root)
    omitted = {str(left.reason): list(left.names) for left in group(listing.omitted, root)}
    return [str(path.relative_to(root)) for path in listing.files], omitted


def test_files_at_any_depth_are_photos(tmp_path: Path) -> None:
    """Sub-folders are listed in order, and file extensions do not matter."""
    _write(tmp_path, "b.jpg", "a/deep/er/c.heic", "a/d", "z.unheard-of", "a.b/e.JPG")
    names = ["a/d", "a/deep/er/c.heic", "a.b/e.JPG", "b.jpg", "z.unheard-of"]
    assert _listed(tmp_path) == (sorted(names, key=lambda name: Path(name).parts), {})


@pytest.mark.parametrize(
    ("name", "reason", "omitted"),
    [
        (".DS_Store", "hidden", ".DS_Store"),
        ("._1.jpg", "hidden", "._1.jpg"),
        (".Trashes/1.jpg", "hidden", ".Trashes"),
        (".ipynb_checkpoints/1.jpg", "hidden", ".ipynb_checkpoints"),
        ("deep/.git/1.jpg", "hidden", "deep/.git"),
        ("Thumbs.db", "system", "Thumbs.db"),
        ("THUMBS.DB", "system", "THUMBS.DB"),
        ("desktop.ini", "system", "desktop.ini"),
        ("Icon\r", "system", "Icon\\u000d"),
        ("__MACOSX/1.jpg", "system", "__MACOSX"),
        ("@eaDir/1.jpg", "system", "@eaDir"),
        ("1.jpg@SynoEAStream", "system", "1.jpg@SynoEAStream"),
        ("#recycle/1.jpg", "system", "#recycle"),
        ("$RECYCLE.BIN/1.jpg", "system", "$RECYCLE.BIN"),
        ("lost+found/1.jpg", "system", "lost+found"),
    ],
)
def test_hidden_and_system_files_are_omitted(
    tmp_path: Path, name: str, reason: str, omitted: str
) -> None:
    """Hidden and system files are omitted even if they contain photos; a folder counts once."""
    _write(tmp_path, "1.jpg", name, content=_photo())
    assert _listed(tmp_path) == (["1.jpg"], {reason: [omitted]})


@pytest.mark.parametrize(
    "name",
    ["a.xmp", "a.JSON", "labels.csv", "README", "README.md", "LICENSE", "notes.txt", "a.AAE"],
)
def test_text_is_omitted(tmp_path: Path, name: str) -> None:
    """A file with the name and content of a text, in UTF-8 or UTF-16, is not a photo."""
    _write(tmp_path, name, content=b"some text")
    _write(tmp_path, f"deep/{name}", content="some text".encode("utf-16"))
    assert _listed(tmp_path) == ([], {"text": sorted([name, f"deep/{name}"])})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_photo_named_like_a_text_is_a_photo(tmp_path: Path, kind: str) -> None:
    """The content decides, not the name."""
    _write(tmp_path, "photo.txt", "README", content=_photo(kind))
    assert _listed(tmp_path) == (["README", "photo.txt"], {})


def test_text_named_like_a_photo_is_listed(tmp_path: Path) -> None:
    """An error page saved as JPEG is listed as a photo, so that decoding reports it."""
    _write(tmp_path, "1.jpg", content=b"<html>404</html>")
    assert _listed(tmp_path) == (["1.jpg"], {})


def test_video_of_a_live_photo_is_omitted(tmp_path: Path) -> None:
    """A video is omitted only if a photo has its name; otherwise decoding reports it."""
    _write(tmp_path, "IMG_1.HEIC", "IMG_1.MOV", "img_2.jpg", "IMG_2.mp4", "3.mov")
    assert _listed(tmp_path) == (
        ["3.mov", "IMG_1.HEIC", "img_2.jpg"],
        {"video": ["IMG_1.MOV", "IMG_2.mp4"]},
    )


def test_links_are_followed(tmp_path: Path) -> None:
    """A link to a file or folder is listed like its target, under the link's name."""
    _write(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "class" / "one.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    assert _listed(tmp_path / "class") == (["more/1.jpg", "more/deep/2.jpg", "one.jpg"], {})


def test_dead_links_are_named(tmp_path: Path) -> None:
    """A link to nothing, to itself or through a file is omitted."""
    _write(tmp_path, "1.jpg")
    (tmp_path / "gone.jpg").symlink_to("/nonexistent/1.jpg")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "through").symlink_to("1.jpg/2.jpg")
    assert _listed(tmp_path) == (["1.jpg"], {"dead_link": ["gone.jpg", "self", "through"]})


def test_link_cycles_are_not_followed(tmp_path: Path) -> None:
    """Links to the folder itself, to its parent, and between two folders are omitted."""
    _write(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    for name, target in (("self", "."), ("up", "../.."), ("a/b", "../b"), ("b/a", "../a")):
        (tmp_path / name).symlink_to(target)
    files, omitted = _listed(tmp_path)
    assert files == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]
    assert omitted == {"repeated": ["a/b", "b/a", "self", "up"]}


def test_links_that_branch_take_no_time(tmp_path: Path) -> None:
    """Each folder is listed once, although 2 to the power of 30 paths lead to the last."""
    for depth in range(30):
        (tmp_path / f"pool/{depth}").mkdir(parents=True)
        for name in "xy":
            (tmp_path / f"pool/{depth}/{name}").symlink_to(f"../{depth + 1}")
    _write(tmp_path, "pool/30/1.jpg")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "all").symlink_to("../pool/0")
    files, omitted = _listed(tmp_path / "class")
    assert len(files) == 1
    assert len(omitted["repeated"]) == 30


def test_folder_is_listed_by_its_own_path(tmp_path: Path) -> None:
    """A folder's own path takes precedence over links to it, even if a link sorts first."""
    _write(tmp_path, "z/1.jpg")
    (tmp_path / "a").symlink_to("z")
    assert _listed(tmp_path) == (["z/1.jpg"], {"repeated": ["a"]})


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    """Reading a pipe would block for ever."""
    _write(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "README")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        assert _listed(tmp_path) == (["1.jpg"], {"special": ["README", "pipe.jpg", "socket.jpg"]})


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return a function that makes a folder unreadable; permissions do not stop root."""
    scandir = os.scandir

    def lock(folder: Path) -> None:
        def scan(path: Path) -> object:
            if path == folder:
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)

    return lock


def test_unreadable_folder_is_omitted(tmp_path: Path, locked: Callable[[Path], None]) -> None:
    """The other folders are listed."""
    _write(tmp_path, "a/1.jpg", "b/2.jpg")
    locked(tmp_path / "a")
    assert _listed(tmp_path) == (["b/2.jpg"], {"unreadable": ["a"]})


def test_unreadable_root_is_an_error(tmp_path: Path, locked: Callable[[Path], None]) -> None:
    """The folder that the caller named must be readable."""
    locked(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be read: Permission denied"):
        list_photos(tmp_path)


def test_inaccessible_link_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is not reported as dead, as its target may exist."""
    entry = SimpleNamespace(name="far.jpg", path="far.jpg", is_symlink=lambda: True)
    entry.stat = Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(os, "scandir", lambda _: nullcontext([entry]))
    assert _listed(tmp_path) == ([], {"unreadable": ["far.jpg"]})


def test_invalid_utf_8_in_names_is_escaped(tmp_path: Path) -> None:
    """All reported names are printable."""
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/.\xff\n"))).touch()
    assert _listed(tmp_path) == ([], {"hidden": [".\\xff\\u000a"]})


def test_read_photo_returns_bytes(tmp_path: Path) -> None:
    """A file of exactly the limit is allowed."""
    path = tmp_path / "1.jpg"
    path.write_bytes(bytes(MOST))
    assert read_photo(path, most_bytes=MOST) == bytes(MOST)


@pytest.mark.parametrize("name", ["missing", "pipe", "folder", "/dev/zero"])
def test_read_photo_refuses_non_files(tmp_path: Path, name: str) -> None:
    """A missing file, folder, pipe or device is an ImageError, without blocking."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="the file cannot be read: "):
        read_photo(tmp_path / name, most_bytes=MOST)


def test_read_photo_refuses_large_file(tmp_path: Path) -> None:
    """The error has size and limit, and the file is not read into memory."""
    with (tmp_path / "video").open("wb") as video:
        video.truncate(2**40)
    with pytest.raises(ImageError, match=rf"has {2**40} bytes; the limit is 1000") as caught:
        read_photo(tmp_path / "video", most_bytes=MOST)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_left_out_has_a_line_and_json() -> None:
    """The line has the first ten names, JSON has all."""
    single = LeftOut(reason="dead_link", names=("a",))
    many = LeftOut(reason="hidden", names=tuple(map(str, range(12))))
    assert single.line() == "left out: 1 dead link (a)"
    assert many.line() == (
        "left out: 12 hidden files or folders (0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more)"
    )
    assert many.json() == {
        "reason": "hidden",
        "count": 12,
        "names": [str(name) for name in range(12)],
    }


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["train", "val", "test"], ["train", "val", "test"]),
        (["Train", "VALID", "testing"], ["train", "val", "test"]),
        (["training_set", "test set", "x"], ["train", "test"]),
        (["seg_train", "seg_test"], ["train", "test"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["train", "bus"], []),
        (["test", "control"], []),
        (["trainer", "tests"], []),
        (["train", "Training"], []),
    ],
)
def test_splits_need_two_roles(names: list[str], roles: list[str]) -> None:
    """A single folder named train or test may be a class; two different roles are splits."""
    assert list(splits([Path(name) for name in names]).values()) == roles
