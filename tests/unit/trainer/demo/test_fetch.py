"""Download of public data sets, from a web server on the loopback."""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from topwork.errors import InvalidInput, NotFound
from topwork_trainer.demo import fetch


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a small archive with the layout of flower_photos.tgz in its place."""
    folder = tmp_path / "flower_photos" / "daisy"
    folder.mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        (folder / name).write_bytes(name.encode())
    file = tmp_path / "flower_photos.tgz"
    with tarfile.open(file, "w:gz") as tar:
        tar.add(tmp_path / "flower_photos", "flower_photos")
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(fetch, "FLOWER_PHOTOS_MD5", md5)
    handler = partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/flower_photos.tgz"
        monkeypatch.setattr(fetch, "FLOWER_PHOTOS_URL", url)
        yield file
        server.shutdown()


def test_fetch_unpacks_folders_of_photos(archive: Path, tmp_path: Path) -> None:
    """Photos are unpacked into one folder per label, and nothing else remains."""
    assert archive.exists()
    target = tmp_path / "new" / "photos"
    assert fetch.fetch("flower_photos", target) == 2
    assert sorted(path.name for path in (target / "daisy").iterdir()) == ["1.jpg", "2.jpg"]
    assert list(target.parent.iterdir()) == [target]


def test_wrong_checksum_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive with another checksum is not unpacked."""
    assert archive.exists()
    monkeypatch.setattr(fetch, "FLOWER_PHOTOS_MD5", "0" * 32)
    with pytest.raises(NotFound, match="cannot be downloaded"):
        fetch.fetch("flower_photos", tmp_path / "photos")
    assert not (tmp_path / "photos").exists()


def test_unreachable_data_set_is_named(archive: Path, tmp_path: Path) -> None:
    """If the download fails the error names the data set."""
    archive.unlink()
    with pytest.raises(NotFound, match="'flower_photos' cannot be downloaded"):
        fetch.fetch("flower_photos", tmp_path / "photos")


def test_folder_with_files_is_refused(archive: Path, tmp_path: Path) -> None:
    """A folder that is not empty is refused and not overwritten; so is an unknown name."""
    with pytest.raises(InvalidInput, match="is not empty"):
        fetch.fetch("flower_photos", archive.parent)
    with pytest.raises(InvalidInput, match="flower_photos, flowers102"):
        fetch.fetch("nonsense", tmp_path / "photos")
