"""Photo folders: the files below a folder that are photos, and what is left out, by reason.

One rule for training and for all commands; docs/training.md documents it. Any file at any
depth is a photo, whatever its name ends in: content decides when it is decoded. Links are followed.
What is left out is never opened, but for the first bytes of what is named like a text file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from topwork.errors import ImageError, InvalidInput
from topwork.printable import file_name

Reason: TypeAlias = Literal[
    "hidden",
    "system",
    "text",
    "video",
    "special",
    "repeated",
    "empty",
    "beside",
    "untrained",
    "dead_link",
    "unreadable",
]

REASONS: Mapping[Reason, tuple[str, str]] = {
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "system": ("file or folder of an operating system", "files or folders of operating systems"),
    "text": ("text file", "text files"),
    "video": ("video beside its photo", "videos beside their photos"),
    "special": ("pipe, socket or device", "pipes, sockets or devices"),
    "repeated": ("folder that another path leads to", "folders that other paths lead to"),
    "empty": ("folder without photos", "folders without photos"),
    "beside": ("file in no class's folder", "files in no class's folder"),
    "untrained": ("folder of a class not trained", "folders of classes not trained"),
    "dead_link": ("dead link", "dead links"),
    "unreadable": ("unreadable file or folder", "unreadable files or folders"),
}
"""Reasons to leave something out, singular and plural, in the order of all output."""

LOSSES = frozenset[Reason]({"dead_link", "unreadable"})
"""Reasons that may have cost photos that somebody meant to be there."""

NAMES = 10
"""Names of a reason in a line for people; JSON has all."""

_SYSTEM = {
    "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@tmp", "#recycle", "#snapshot",
    "__macosx", "__pycache__", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r",
    "lost+found", "network trash folder", "picasa.ini", "recycler", "system volume information",
    "temporary items", "thumbs.db", "zbthumbnail.info",
}  # fmt: skip
_SYSTEM_ENDINGS = ("@synoeastream", "@synoresource")
_TEXT_ENDINGS = {
    ".aae", ".cfg", ".csv", ".dop", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log",
    ".md", ".md5", ".pp3", ".py", ".rst", ".sh", ".sha1", ".sha256", ".toml", ".tsv", ".txt",
    ".url", ".xml", ".xmp", ".yaml", ".yml",
}  # fmt: skip
_TEXT_NAMES = {
    "authors", "changelog", "citation", "copying", "licence", "license", "md5sums", "notice",
    "readme", "sha256sums",
}  # fmt: skip
_VIDEO_ENDINGS = {".mov", ".mp4"}
"""What phones write beside a photo: Live Photos and motion photos."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

_ROLES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation", "holdout"), "test"),
}
_WORD = re.compile("[a-z]+")


@dataclass(frozen=True, slots=True)
class Omitted:
    """A file or folder that is left out."""

    reason: Reason
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Content of a folder, or of all below it; sorted."""

    files: tuple[Path, ...]
    omitted: tuple[Omitted, ...]
    folders: tuple[Path, ...] = ()
    """Sub-folders that are not read yet; empty where all below is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """All that was left out for one reason."""

    reason: Reason
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Return such as ``2 dead links``."""
        one, several = REASONS[self.reason]
        return f"{len(self.names):,} {one if len(self.names) == 1 else several}"

    def line(self) -> str:
        """Return a line for people, with the first names."""
        more = len(self.names) - NAMES
        shown = ", ".join(self.names[:NAMES]) + (f" and {more:,} more" if more > 0 else "")
        return f"left out: {self} ({shown})"

    def json(self) -> dict[str, object]:
        """Return JSON data with all names."""
        return {"reason": self.reason, "count": len(self.names), "names": list(self.names)}


def list_photos(folder: Path, *, one_class: bool = False) -> Listing:
    """Return the photos below a folder.

    Each folder is read once: by its own path, or else by the first of the links to it. Raises
    InvalidInput if the folder itself cannot be read, or if it is to be ``one_class`` and holds
    splits of a data set: photos of a test set must not be learnt from unnoticed.
    """
    files: list[Path] = []
    omitted: list[Omitted] = []
    read: set[str] = set()
    waiting, links = [folder], list[Path]()
    while waiting or links:
        current = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(current)
        if real in read:
            omitted.append(Omitted("repeated", current))
            continue
        read.add(real)
        try:
            found = list_folder(current)
        except InvalidInput:
            if current is folder:
                raise
            omitted.append(Omitted("unreadable", current))
            continue
        if one_class and current is folder:
            _refuse_splits(folder, splits(found.folders))
        files += found.files
        omitted += found.omitted
        for path in found.folders:
            (links if path.is_symlink() else waiting).append(path)
    return Listing(files=tuple(sorted(files)), omitted=tuple(omitted))


def list_folder(folder: Path) -> Listing:
    """Return the photos and folders right in a folder. Raises InvalidInput if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        text = f"the folder {file_name(folder)} cannot be read: {error.strerror}"
        raise InvalidInput(text, field="folder") from error
    real = os.path.realpath(folder)
    files: list[Path] = []
    folders: list[Path] = []
    omitted: list[Omitted] = []
    for entry in found:
        path, kind = folder / entry.name, _kind(entry, real)
        if kind == "file":
            files.append(path)
        elif kind == "folder":
            folders.append(path)
        else:
            omitted.append(Omitted(kind, path))
    shot = {path.stem.casefold() for path in files if not _is_video(path)}
    videos = {path for path in files if _is_video(path) and path.stem.casefold() in shot}
    return Listing(
        files=tuple(path for path in files if path not in videos),
        folders=tuple(folders),
        omitted=(*omitted, *(Omitted("video", path) for path in sorted(videos))),
    )


def read_photo(path: Path, *, most_bytes: int) -> bytes:
    """Return a file's bytes. Raises ImageError if it is too large, or cannot be read as a file.

    Never blocks: a pipe, socket or device is refused.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("the file cannot be read: it is a folder, pipe, socket or device")
        with _opened(path) as file:
            length = os.fstat(file.fileno()).st_size
            content = b"" if length > most_bytes else file.read(most_bytes + 1)
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error
    if max(length, len(content)) > most_bytes:
        raise ImageError(
            f"the file has {max(length, len(content))} bytes; the limit is {most_bytes}",
            reason="IMAGE_TOO_LARGE",
        )
    return content


def group(omitted: Iterable[Omitted], base: Path | None = None) -> tuple[LeftOut, ...]:
    """Return what is left out by reason, named as seen from the folder ``base``."""
    names: dict[Reason, list[str]] = defaultdict(list)
    for one in omitted:
        names[one.reason].append(file_name(one.path.relative_to(base) if base else one.path))
    return tuple(
        LeftOut(reason=reason, names=tuple(sorted(names[reason])))
        for reason in REASONS
        if reason in names
    )


def splits(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the role (train, val, test) of each folder that is named like a split of a data set.

    Empty unless there are two roles at least: a single ``test`` may be anything.
    """
    roles = {
        folder: next(iter(found))
        for folder in folders
        if len(found := {_ROLES[word] for word in _words(folder) if word in _ROLES}) == 1
    }
    return roles if len(set(roles.values())) > 1 else {}


def _refuse_splits(folder: Path, found: Mapping[Path, str]) -> None:
    if found:
        names = " and ".join(file_name(path.name) for path in found)
        first = min(found, key=lambda path: (found[path] != "train", path))
        raise InvalidInput(
            f"{file_name(folder)} is to be one class and holds {names}, named like the splits of a "
            f"data set: learn from {file_name(first)} alone, or keep classes below splits",
            field="folder",
            reason="SPLITS",
        )


def _words(folder: Path) -> list[str]:
    return _WORD.findall(folder.name.casefold())


def _kind(entry: os.DirEntry[str], real: str) -> Literal["file", "folder"] | Reason:
    """Return what an entry of the folder ``real`` is, or why it is left out."""
    name = entry.name.casefold()
    if name.startswith("."):
        return "hidden"
    if name in _SYSTEM or name.endswith(_SYSTEM_ENDINGS):
        return "system"
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return "dead_link" if entry.is_symlink() and error.errno in _GONE else "unreadable"
    if stat.S_ISDIR(mode):
        leads_up = entry.is_symlink() and _contains(os.path.realpath(entry.path), real)
        return "repeated" if leads_up else "folder"
    if not stat.S_ISREG(mode):
        return "special"
    return "text" if _is_text(Path(entry.path)) else "file"


def _contains(folder: str, other: str) -> bool:
    return os.path.commonpath([folder, other]) == folder


def _is_text(path: Path) -> bool:
    """Return whether a file is named like a text and begins like a text.

    The first 1,024 bytes of a text have no zero, unless it is UTF-16; those of a photo have.
    """
    if path.suffix.casefold() not in _TEXT_ENDINGS and path.stem.casefold() not in _TEXT_NAMES:
        return False
    try:
        with _opened(path) as file:
            head = file.read(1024)
    except OSError:
        return True
    return b"\0" not in head or head.startswith(_UTF_16)


def _is_video(path: Path) -> bool:
    return path.suffix.casefold() in _VIDEO_ENDINGS


def _opened(path: Path) -> BinaryIO:
    """Open what was a regular file a moment ago: should it be a pipe now, without waiting."""
    return open(path, "rb", opener=_without_waiting)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
