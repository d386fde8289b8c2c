"""The one rule of which files are photos, and the report of those that are left out."""

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
from topwork.inputs.folders import LeftOut, group, list_photos, read_photo, splits

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


def _seen(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the photos below a folder, and what is left out by reason, as relative names."""
    found = list_photos(root)
    left = {str(one.reason): list(one.names) for one in group(found.omitted, root)}
    return [str(path.relative_to(root)) for path in found.files], left


def test_files_at_any_depth_are_photos(tmp_path: Path) -> None:
    """Sub-folders are read, in order, and no ending is asked for."""
    _write(tmp_path, "b.jpg", "a/deep/er/c.heic", "a/d", "z.unheard-of", "a.b/e.JPG")
    names = ["a/d", "a/deep/er/c.heic", "a.b/e.JPG", "b.jpg", "z.unheard-of"]
    assert _seen(tmp_path) == (sorted(names, key=lambda name: Path(name).parts), {})


@pytest.mark.parametrize(
    ("name", "reason", "left"),
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
def test_droppings_are_left_out(tmp_path: Path, name: str, reason: str, left: str) -> None:
    """What systems leave behind is no photo, whatever is in it; a folder counts as one."""
    _write(tmp_path, "1.jpg", name, content=_photo())
    assert _seen(tmp_path) == (["1.jpg"], {reason: [left]})


@pytest.mark.parametrize(
    "name",
    ["a.xmp", "a.JSON", "labels.csv", "README", "README.md", "LICENSE", "notes.txt", "a.AAE"],
)
def test_text_beside_photos_is_left_out(tmp_path: Path, name: str) -> None:
    """A file that is named like a text and is one, in UTF-8 or UTF-16, is no photo."""
    _write(tmp_path, name, content=b"some text")
    _write(tmp_path, f"deep/{name}", content="some text".encode("utf-16"))
    assert _seen(tmp_path) == ([], {"text": sorted([name, f"deep/{name}"])})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_photo_named_like_a_text_is_a_photo(tmp_path: Path, kind: str) -> None:
    """Content decides, not the name."""
    _write(tmp_path, "photo.txt", "README", content=_photo(kind))
    assert _seen(tmp_path) == (["README", "photo.txt"], {})


def test_a_text_named_like_a_photo_is_tried(tmp_path: Path) -> None:
    """Such as a server's error page saved as a JPEG: decoding it says what is wrong."""
    _write(tmp_path, "1.jpg", content=b"<html>404</html>")
    assert _seen(tmp_path) == (["1.jpg"], {})


def test_a_phones_video_of_a_photo_is_left_out(tmp_path: Path) -> None:
    """Beside the photo of its name only: a video alone may be taken for a photo, and is named."""
    _write(tmp_path, "IMG_1.HEIC", "IMG_1.MOV", "img_2.jpg", "IMG_2.mp4", "3.mov")
    assert _seen(tmp_path) == (
        ["3.mov", "IMG_1.HEIC", "img_2.jpg"],
        {"video": ["IMG_1.MOV", "IMG_2.mp4"]},
    )


def test_links_are_followed(tmp_path: Path) -> None:
    """A link to a file or to a folder counts as what it leads to, under its own name."""
    _write(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "class" / "one.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    assert _seen(tmp_path / "class") == (["more/1.jpg", "more/deep/2.jpg", "one.jpg"], {})


def test_dead_links_are_named(tmp_path: Path) -> None:
    """A link to nothing, to itself or through a file is left out."""
    _write(tmp_path, "1.jpg")
    (tmp_path / "gone.jpg").symlink_to("/nonexistent/1.jpg")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "through").symlink_to("1.jpg/2.jpg")
    assert _seen(tmp_path) == (["1.jpg"], {"dead_link": ["gone.jpg", "self", "through"]})


def test_loops_end(tmp_path: Path) -> None:
    """Links to the folder itself, above it, and across two folders are not followed in circles."""
    _write(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    for name, target in (("self", "."), ("up", "../.."), ("a/b", "../b"), ("b/a", "../a")):
        (tmp_path / name).symlink_to(target)
    files, left = _seen(tmp_path)
    assert files == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]
    assert left == {"repeated": ["a/b", "b/a", "self", "up"]}


def test_links_that_branch_take_no_time(tmp_path: Path) -> None:
    """Each folder is read once, though 2 to the power of 30 paths lead to the last one."""
    for depth in range(30):
        (tmp_path / f"pool/{depth}").mkdir(parents=True)
        for name in "xy":
            (tmp_path / f"pool/{depth}/{name}").symlink_to(f"../{depth + 1}")
    _write(tmp_path, "pool/30/1.jpg")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "all").symlink_to("../pool/0")
    files, left = _seen(tmp_path / "class")
    assert len(files) == 1
    assert len(left["repeated"]) == 30


def test_a_folders_own_path_goes_before_links_to_it(tmp_path: Path) -> None:
    """A link that is read first takes no photo away from the folder that it leads to."""
    _write(tmp_path, "z/1.jpg")
    (tmp_path / "a").symlink_to("z")
    assert _seen(tmp_path) == (["z/1.jpg"], {"repeated": ["a"]})


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    """They are left out; a read of one would wait for ever."""
    _write(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "README")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        assert _seen(tmp_path) == (["1.jpg"], {"special": ["README", "pipe.jpg", "socket.jpg"]})


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Return what makes a folder unreadable, which permissions do not for root."""
    scandir = os.scandir

    def lock(folder: Path) -> None:
        def scan(path: Path) -> object:
            if path == folder:
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)

    return lock


def test_an_unreadable_folder_is_named(tmp_path: Path, locked: Callable[[Path], None]) -> None:
    """The others are read."""
    _write(tmp_path, "a/1.jpg", "b/2.jpg")
    locked(tmp_path / "a")
    assert _seen(tmp_path) == (["b/2.jpg"], {"unreadable": ["a"]})


def test_the_folder_itself_must_be_readable(tmp_path: Path, locked: Callable[[Path], None]) -> None:
    """What was asked for and cannot be read is an error."""
    locked(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be read: Permission denied"):
        list_photos(tmp_path)


def test_a_link_out_of_reach_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called dead: what it leads to may be there."""
    entry = SimpleNamespace(name="far.jpg", path="far.jpg", is_symlink=lambda: True)
    entry.stat = Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(os, "scandir", lambda _: nullcontext([entry]))
    assert _seen(tmp_path) == ([], {"unreadable": ["far.jpg"]})


def test_names_that_are_no_utf_8_are_escaped(tmp_path: Path) -> None:
    """Whatever is reported can be printed."""
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/.\xff\n"))).touch()
    assert _seen(tmp_path) == ([], {"hidden": [".\\xff\\u000a"]})


def test_a_photo_is_read(tmp_path: Path) -> None:
    """Its bytes come back, up to the limit."""
    path = tmp_path / "1.jpg"
    path.write_bytes(bytes(MOST))
    assert read_photo(path, most_bytes=MOST) == bytes(MOST)


@pytest.mark.parametrize("name", ["missing", "pipe", "folder", "/dev/zero"])
def test_what_is_no_file_is_not_read(tmp_path: Path, name: str) -> None:
    """Neither does it wait."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="the file cannot be read: "):
        read_photo(tmp_path / name, most_bytes=MOST)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """The error has its size and the limit; memory is not asked for."""
    with (tmp_path / "video").open("wb") as video:
        video.truncate(2**40)
    with pytest.raises(ImageError, match=rf"has {2**40} bytes; the limit is 1000") as caught:
        read_photo(tmp_path / "video", most_bytes=MOST)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_left_out_has_a_line_and_json() -> None:
    """Ten names in a line, all of them in JSON."""
    one = LeftOut(reason="dead_link", names=("a",))
    many = LeftOut(reason="hidden", names=tuple(map(str, range(12))))
    assert one.line() == "left out: 1 dead link (a)"
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
def test_splits_are_known_by_two_roles(names: list[str], roles: list[str]) -> None:
    """One folder called train or test may be a class; two of different roles look like splits."""
    assert list(splits([Path(name) for name in names]).values()) == roles
