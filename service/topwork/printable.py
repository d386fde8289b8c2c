"""Escape sequences for characters that control a terminal, reorder text, or are no Unicode."""

from __future__ import annotations

import os
import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Controls, of bidi too; separators of lines and paragraphs; halves of surrogate pairs."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def file_name(path: str | os.PathLike[str]) -> str:
    r"""Return a file's name as text that can be printed, sent and stored.

    A byte that is no UTF-8 becomes ``\xff``, a control character ``\u001b``, a backslash two: so no
    two files have the same, and the original can be recovered.
    """
    return printable(os.fspath(path).replace("\\", "\\\\"))


def printable(text: str) -> str:
    """Return text in which what would control a terminal or reorder a line is escaped."""
    return _UNSAFE.sub(_escaped, text)


def encodable(text: str) -> str:
    """Return text that can be encoded as UTF-8: halves of surrogate pairs are escaped."""
    return _SURROGATE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    # How Python reads a byte that is no UTF-8 (PEP 383).
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
