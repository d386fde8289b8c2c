"""Zip and tar archives as trees: members are read in place and never extracted.

Nothing is written at the path of a member, so a hostile name can overwrite nothing. Members with a
name that leads out of the archive, links and devices are left out all the same.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.spool import RandomAccessFile, open_file, open_spool
from topwork.inputs.data.trees import MAX_TABLE_BYTES, check_table_length
from topwork.inputs.folders import (
    TEXT_BYTES,
    Listing,
    Omitted,
    Reason,
    begins_like_text,
    has_text_name,
    listing_of,
    reason_of_name,
)
from topwork.inputs.splits import refuse_splits
from topwork.limits import DEFAULT_LIMITS
from topwork.printable import file_name

MAX_MEMBERS = 1_000_000
"""Raising it accepts archives with more members, each of which needs about 1 kB of memory."""

_MAX_HEADER_BYTES = 2**20
"""Raising it accepts longer names and attributes of members, which are read into memory."""

_COMPRESSIONS: Mapping[bytes, Callable[[Path], IO[bytes] | gzip.GzipFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive."""

    size: int
    read: Callable[[int], bytes]
    """Returns up to this many first bytes."""


def is_archive(path: Path) -> bool:
    """Return True if a file begins like a zip or tar archive, or like a compressed file."""
    with path.open("rb") as file:
        head = file.read(262)
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06", *_COMPRESSIONS)) or head[257:] == b"ustar"


def open_archive(path: Path) -> ArchiveTree:
    """Return the tree of a zip or tar archive, which is open until nothing refers to the tree.

    A compressed tar archive is expanded into a temporary file without a name. Raises InvalidInput
    if the archive is damaged, has too many members, or expands too much.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        entries = _zip_members(path) if is_zip else _tar_members(path)
        return ArchiveTree(path, entries)
    except (OSError, EOFError, ValueError, NotImplementedError) as error:
        text = f"{file_name(path)} cannot be read: {error}"
        raise InvalidInput(text, field="data") from error
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        text = f"{file_name(path)} is damaged, or not a zip or tar archive: {error}"
        raise InvalidInput(text, field="data") from error


class ArchiveTree:
    """Tree of the members of an archive."""

    def __init__(self, root: Path, entries: Iterator[tuple[str, Member | Reason | None]]) -> None:
        """Index the entries: names with a file, a reason to omit it, or None for a folder."""
        self.root = root
        self._members: dict[Path, Member] = {}
        self._content: dict[Path, set[Path]] = defaultdict(set)
        self._folders = {root}
        omitted: dict[str, Reason] = {}
        for count, (name, entry) in enumerate(entries, start=1):
            if count > MAX_MEMBERS:
                raise InvalidInput(
                    f"{file_name(root)} has more than {MAX_MEMBERS:,} members", field="data"
                )
            place = _place(name)
            if place is None:
                omitted[file_name(name)] = "unsafe"
            elif isinstance(entry, str):
                omitted[file_name(place)] = entry
            elif place != ".":
                self._add(root / place, entry)
        self.omitted = tuple((reason, name) for name, reason in omitted.items())
        """Names of members that are in no listing, with the reason."""

    def _add(self, path: Path, member: Member | None) -> None:
        if member is None:
            self._folders.add(path)
        else:
            self._members[path] = member  # of members of the same name the last counts
        while path != self.root:
            self._content[path.parent].add(path)
            path = path.parent
            if path in self._folders:
                return
            self._folders.add(path)

    def list_folder(self, folder: Path) -> Listing:
        """See Tree."""
        files: list[Path] = []
        folders: list[Path] = []
        omitted: list[Omitted] = []
        for path in sorted(self._content[folder]):
            if reason := reason_of_name(path.name):
                omitted.append(Omitted(reason, path))
            elif path in self._folders:
                folders.append(path)
            elif self._is_text(path):
                omitted.append(Omitted("text", path))
            else:
                files.append(path)
        return listing_of(files, folders, omitted)

    def list_class(self, folder: Path) -> Listing:
        """See Tree."""
        files: list[Path] = []
        omitted: list[Omitted] = []
        pending = [folder]
        while pending:
            listing = self.list_folder(current := pending.pop())
            if current == folder:
                refuse_splits(folder, listing.folders)
            files += listing.files
            omitted += listing.omitted
            pending += listing.folders
        return Listing(files=tuple(sorted(files)), omitted=tuple(omitted))

    def reader(self, path: Path) -> Callable[[], bytes]:
        """See Tree."""
        member = self._members[Path(os.path.normpath(path))]
        return partial(_read_photo, member, DEFAULT_LIMITS.max_image_bytes)

    def file(self, path: Path) -> Path | None:  # noqa: ARG002 # Tree's signature
        """See Tree."""
        return None

    def exists(self, path: Path) -> bool:
        """See Tree."""
        return Path(os.path.normpath(path)) in self._members

    def read_table(self, path: Path) -> bytes:
        """See Tree."""
        return check_table_length(_read(self._members[path], MAX_TABLE_BYTES + 1), path)

    def _is_text(self, path: Path) -> bool:
        if not has_text_name(path):
            return False
        try:
            return begins_like_text(_read(self._members[path], TEXT_BYTES))
        except ImageError:
            return True


def _place(name: str) -> str | None:
    """Return the normal form of a member's name, or None if it is not below the archive's root."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or parts[0].endswith(":"):
        return None
    return "/".join(part for part in parts if part not in {"", "."}) or "."


def _read_photo(member: Member, most_bytes: int) -> bytes:
    """Return a member. Raises ImageError if it is too large or cannot be read."""
    content = b"" if member.size > most_bytes else _read(member, most_bytes + 1)
    if (length := max(member.size, len(content))) > most_bytes:
        raise ImageError(
            f"the file has {length} bytes; the limit is {most_bytes}", reason="IMAGE_TOO_LARGE"
        )
    return content


def _read(member: Member, most_bytes: int) -> bytes:
    try:
        return member.read(most_bytes)
    except Exception as error:  # encryption, damage, compression methods: zipfile raises many
        raise ImageError(f"it cannot be read from the archive: {error}") from error


# Zip


def _zip_members(path: Path) -> Iterator[tuple[str, Member | Reason | None]]:
    archive = zipfile.ZipFile(path)
    lock = threading.Lock()  # ZipFile counts its readers without one
    for info in archive.infolist():
        mode = info.external_attr >> 16
        name = _zip_name(info)
        if name.endswith("/"):
            yield name, None
        elif stat.S_ISLNK(mode):
            yield name, "link"
        elif stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
            yield name, "special"
        elif info.flag_bits & 1:
            yield name, "unreadable"  # encrypted
        else:
            yield name, Member(info.file_size, partial(_read_zipped, archive, info, lock))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; macOS stores UTF-8 without saying so, Windows may use backslashes."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if info.create_system == 0 else name


def _read_zipped(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, lock: threading.Lock, most_bytes: int
) -> bytes:
    with lock, archive.open(info) as file:
        return file.read(most_bytes)


# Tar


class _TarInfo(tarfile.TarInfo):
    """Member whose extended headers have a limited length: tarfile reads them into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]  # not in typeshed


def _tar_members(path: Path) -> Iterator[tuple[str, Member | Reason | None]]:
    file = _open_tar(path)
    with os.fdopen(os.dup(file.descriptor), "rb") as opened:
        opened.seek(0)  # a spool was written with this descriptor
        with tarfile.open(fileobj=opened, mode="r:", tarinfo=_TarInfo) as archive:
            for info in archive:
                yield info.name, _tar_member(info, file)
            # tarfile takes a damaged header for the end: a block of zeros, or the file's end.
            if file.read(archive.offset, 512, 512).strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")


def _tar_member(info: tarfile.TarInfo, file: RandomAccessFile) -> Member | Reason | None:
    if info.isdir():
        return None
    if info.issym() or info.islnk():
        return "link"
    if not info.isreg() or info.issparse():
        return "special"
    return Member(info.size, partial(file.read, info.offset_data, info.size))


def _open_tar(path: Path) -> RandomAccessFile:
    """Return an open tar archive, or a spool with its expanded content."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, opener in _COMPRESSIONS.items():
        if head.startswith(magic):
            spool = open_spool(path)
            with opener(path) as compressed:
                while block := compressed.read(2**20):
                    spool.append(block)
            return spool
    return open_file(path)
