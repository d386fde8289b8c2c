"""Photo folders: the photos below a folder, and the omitted files and folders, by reason.

Training and all commands use the same rule; docs/training.md documents it. Any file at any depth
is a photo, whatever its extension: its content decides when it is decoded. Links are followed.
Omitted files are not opened, except files named like a text, whose first bytes are read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from topwork.errors import ImageError, InvalidInput
from topwork.inputs.splits import refuse_splits
from topwork.printable import file_name

Reason: TypeAlias = Literal[
    "hidden",
    "system",
    "text",
    "kind",
    "video",
    "special",
    "repeated",
    "empty",
    "beside",
    "untrained",
    "unlabelled",
    "multi_label",
    "disagreement",
    "dead_link",
    "unreadable",
    "missing",
    "unsafe",
    "link",
]

REASONS: Mapping[Reason, tuple[str, str]] = {
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "system": ("file or folder of an operating system", "files or folders of operating systems"),
    "text": ("text file", "text files"),
    "kind": ("file of another kind", "files of another kind"),
    "video": ("video beside its photo", "videos beside their photos"),
    "special": ("pipe, socket or device", "pipes, sockets or devices"),
    "repeated": ("folder reached by another path", "folders reached by other paths"),
    "empty": ("folder without photos", "folders without photos"),
    "beside": ("file outside of class folders", "files outside of class folders"),
    "untrained": (
        "file or folder of a class not trained",
        "files or folders of classes not trained",
    ),
    "unlabelled": ("photo without a label", "photos without a label"),
    "multi_label": ("photo with several labels", "photos with several labels"),
    "disagreement": (
        "photo whose annotators disagree",
        "photos whose annotators disagree",
    ),
    "dead_link": ("dead link", "dead links"),
    "unreadable": ("unreadable file or folder", "unreadable files or folders"),
    "missing": ("missing file", "missing files"),
    "unsafe": (
        "member of an archive with an unsafe path",
        "members of an archive with unsafe paths",
    ),
    "link": ("link in an archive", "links in an archive"),
}
"""Descriptions of the reasons to omit, singular and plural, in the order of all output."""

LOSSES = frozenset[Reason]({"dead_link", "unreadable", "missing", "unsafe", "link"})
"""Reasons that may mean lost photos."""

SHOWN_NAMES = 10
"""Raising it shows more names per reason on the terminal; JSON has all."""

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
"""Extensions of Live Photos and motion photos, which phones write beside a photo."""

TEXT_BYTES = 1024
"""Number of first bytes by which a file named like a text is recognised as one."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True, slots=True)
class Omitted:
    """A file or folder that is omitted."""

    reason: Reason
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Sorted content of a folder, or of the whole tree below it."""

    files: tuple[Path, ...]
    omitted: tuple[Omitted, ...]
    folders: tuple[Path, ...] = ()
    """Sub-folders that are not listed yet; empty if the whole tree is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """All files and folders that are omitted for the same reason."""

    reason: Reason
    names: tuple[str, ...]

    def __str__(self) -> str:
        """Return count and reason, such as ``2 dead links``."""
        singular, plural = REASONS[self.reason]
        return f"{len(self.names):,} {singular if len(self.names) == 1 else plural}"

    def line(self) -> str:
        """Return a line for the terminal, with the first names."""
        more = len(self.names) - SHOWN_NAMES
        names = ", ".join(self.names[:SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
        return f"left out: {self} ({names})"

    def json(self) -> dict[str, object]:
        """Return JSON data with all names."""
        return {"reason": self.reason, "count": len(self.names), "names": list(self.names)}


def list_photos(folder: Path, *, one_class: bool = False) -> Listing:
    """Return the photos below a folder.

    Each folder is listed once: by its own path, or else by the first link to it. Raises
    InvalidInput if the folder itself cannot be read, or if it is ``one_class`` and contains splits
    of a data set: training on photos of a test set must not go unnoticed.
    """
    files: list[Path] = []
    omitted: list[Omitted] = []
    visited: set[str] = set()
    pending, links = [folder], list[Path]()
    while pending or links:
        current = pending.pop() if pending else links.pop(0)
        real = os.path.realpath(current)
        if real in visited:
            omitted.append(Omitted("repeated", current))
            continue
        visited.add(real)
        try:
            listing = list_folder(current)
        except InvalidInput:
            if current is folder:
                raise
            omitted.append(Omitted("unreadable", current))
            continue
        if one_class and current is folder:
            refuse_splits(folder, listing.folders)
        files += listing.files
        omitted += listing.omitted
        for path in listing.folders:
            (links if path.is_symlink() else pending).append(path)
    return Listing(files=tuple(sorted(files)), omitted=tuple(omitted))


def list_folder(folder: Path) -> Listing:
    """Return the photos and sub-folders of a folder. Raises InvalidInput if it cannot be read."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        text = f"the folder {file_name(folder)} cannot be read: {error.strerror}"
        raise InvalidInput(text, field="folder") from error
    real = os.path.realpath(folder)
    files: list[Path] = []
    folders: list[Path] = []
    omitted: list[Omitted] = []
    for entry in entries:
        path, kind = folder / entry.name, _kind(entry, real)
        if kind == "file":
            files.append(path)
        elif kind == "folder":
            folders.append(path)
        else:
            omitted.append(Omitted(kind, path))
    return listing_of(files, folders, omitted)


def listing_of(
    files: Sequence[Path], folders: Sequence[Path], omitted: Sequence[Omitted]
) -> Listing:
    """Return the listing of one folder, in which videos beside their photos are omitted."""
    photos = {path.stem.casefold() for path in files if not _is_video(path)}
    videos = {path for path in files if _is_video(path) and path.stem.casefold() in photos}
    return Listing(
        files=tuple(path for path in files if path not in videos),
        folders=tuple(folders),
        omitted=(*omitted, *(Omitted("video", path) for path in sorted(videos))),
    )


def read_photo(path: Path, *, most_bytes: int) -> bytes:
    """Return a file's bytes. Raises ImageError if it is too large, or cannot be read.

    Never blocks: a pipe, socket or device is refused.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("the file cannot be read: it is a folder, pipe, socket or device")
        with _open(path) as file:
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
    """Return omitted files and folders by reason, with paths relative to ``base``."""
    return by_reason(
        (each.reason, file_name(each.path.relative_to(base) if base else each.path))
        for each in omitted
    )


def by_reason(omitted: Iterable[tuple[Reason, str]]) -> tuple[LeftOut, ...]:
    """Return names, each with the reason to omit it, by reason."""
    names: dict[Reason, list[str]] = defaultdict(list)
    for reason, name in omitted:
        names[reason].append(name)
    return tuple(
        LeftOut(reason=reason, names=tuple(sorted(names[reason])))
        for reason in REASONS
        if reason in names
    )


def _kind(entry: os.DirEntry[str], real: str) -> Literal["file", "folder"] | Reason:
    """Return the kind of an entry of the folder ``real``, or the reason to omit it."""
    if reason := reason_of_name(entry.name):
        return reason
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return "dead_link" if entry.is_symlink() and error.errno in _GONE else "unreadable"
    if stat.S_ISDIR(mode):
        is_cycle = entry.is_symlink() and _contains(os.path.realpath(entry.path), real)
        return "repeated" if is_cycle else "folder"
    if not stat.S_ISREG(mode):
        return "special"
    return "text" if _is_text(Path(entry.path)) else "file"


def reason_of_name(name: str) -> Reason | None:
    """Return the reason to omit a file or folder for its name alone, or None."""
    name = name.casefold()
    if name.startswith("."):
        return "hidden"
    return "system" if name in _SYSTEM or name.endswith(_SYSTEM_ENDINGS) else None


def _contains(folder: str, other: str) -> bool:
    return os.path.commonpath([folder, other]) == folder


def _is_text(path: Path) -> bool:
    if not has_text_name(path):
        return False
    try:
        with _open(path) as file:
            return begins_like_text(file.read(TEXT_BYTES))
    except OSError:
        return True


def has_text_name(path: Path) -> bool:
    """Return True if a file is named like a text, such as README or labels.csv."""
    return path.suffix.casefold() in _TEXT_ENDINGS or path.stem.casefold() in _TEXT_NAMES


def begins_like_text(head: bytes) -> bool:
    """Return True if the first TEXT_BYTES of a file are those of a text.

    Those of a photo contain a zero; those of a text do not, unless it is UTF-16.
    """
    return b"\0" not in head or head.startswith(_UTF_16)


def _is_video(path: Path) -> bool:
    return path.suffix.casefold() in _VIDEO_ENDINGS


def _open(path: Path) -> BinaryIO:
    """Open a file without blocking, even if a pipe replaced it after it was checked."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
