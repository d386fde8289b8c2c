"""Spool: temporary file without a name, for photos that cannot be read at random where they are."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.printable import file_name

MAX_EXPANSION = 50
"""Raising it accepts compressed files that expand more; photos expand by a few percent."""

ALWAYS_EXPANDED = 2**30
"""Raising it expands more bytes of a compressed file before MAX_EXPANSION applies."""


class RandomAccessFile:
    """Open file that is read by several threads and closed when nothing refers to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, size: int, most_bytes: int) -> bytes:
        """Return ``size`` bytes at an offset, at most ``most_bytes`` of them."""
        return os.pread(self.descriptor, min(size, most_bytes), offset)


class Spool(RandomAccessFile):
    """Temporary file to which the expanded content of one file is appended."""

    def __init__(self, descriptor: int, source: Path) -> None:
        super().__init__(descriptor)
        self._source = source
        self._limit = max(ALWAYS_EXPANDED, MAX_EXPANSION * source.stat().st_size)
        self._length = 0

    def append(self, content: bytes) -> int:
        """Append content and return its offset.

        Raises InvalidInput if the source expands too much, or the temporary file cannot be written.
        """
        offset = self._length
        self._length += len(content)
        if self._length > self._limit:
            raise InvalidInput(
                f"{file_name(self._source)} expands to more than {self._limit:,} bytes: it does "
                "not contain photos alone",
                field="data",
            )
        try:
            while content:
                content = content[os.write(self.descriptor, content) :]
        except OSError as error:
            raise InvalidInput(
                f"{file_name(self._source)} cannot be expanded into {tempfile.gettempdir()}: "
                f"{error.strerror}",
                field="data",
            ) from error
        return offset


def open_file(path: Path) -> RandomAccessFile:
    """Open a file. Raises OSError."""
    return RandomAccessFile(os.open(path, os.O_RDONLY))


def open_spool(source: Path) -> Spool:
    """Open an empty spool for the content of ``source``. Raises OSError."""
    with tempfile.TemporaryFile() as file:
        return Spool(os.dup(file.fileno()), source)
