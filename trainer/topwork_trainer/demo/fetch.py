"""Download of public data sets as folders of photos."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

from topwork.errors import InvalidInput, NotFound

FLOWER_PHOTOS_URL = (
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
)
FLOWER_PHOTOS_MD5 = "6f87fb78e9cc9ab41eff2015b380011d"


def fetch(name: str, directory: Path) -> int:
    """Download the data set ``name`` to ``directory``/<label>/ and return the number of photos.

    Archives are verified against their checksums. Raises InvalidInput for an unknown name or if
    ``directory`` is not empty, NotFound if the download fails.
    """
    if name not in SETS:
        raise InvalidInput(f"unknown data set {name!r}; known: {', '.join(SETS)}", field="name")
    if directory.exists() and any(directory.iterdir()):
        raise InvalidInput(f"{directory} is not empty", field="directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system as the target, so that photos are moved and not copied.
    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        try:
            SETS[name](Path(work), directory)
        except (URLError, OSError, RuntimeError) as error:  # RuntimeError: wrong checksum
            raise NotFound(
                f"data set {name!r} cannot be downloaded: {error}", kind="data set", resource=name
            ) from error
    return sum(1 for _ in directory.glob("*/*.jpg"))


def _flower_photos(work: Path, directory: Path) -> None:
    """Download 3,670 photos of five kinds of flowers (CC-BY 2.0, authors in its LICENSE.txt)."""
    from topwork_trainer.backbones.torchvision_import import package

    package().datasets.utils.download_and_extract_archive(
        FLOWER_PHOTOS_URL, str(work), md5=FLOWER_PHOTOS_MD5, remove_finished=True
    )
    shutil.move(work / "flower_photos", directory)


def _flowers102(work: Path, directory: Path) -> None:
    """Download 8,189 photos of 102 kinds of flowers (Nilsback and Zisserman, 2008)."""
    from topwork_trainer.backbones.torchvision_import import package

    for split in ("train", "val", "test"):
        # The loader returns the path, so that an item is a path and a class.
        photos = package().datasets.Flowers102(
            str(work), split=split, download=True, loader=lambda path: path
        )
        for index in range(len(photos)):
            path, target = photos[index]
            label = directory / f"{target + 1:03d} {photos.classes[target]}"
            label.mkdir(parents=True, exist_ok=True)
            shutil.move(path, label / Path(path).name)


SETS: dict[str, Callable[[Path, Path], None]] = {
    "flower_photos": _flower_photos,
    "flowers102": _flowers102,
}
"""Download functions by the name of the data set."""
