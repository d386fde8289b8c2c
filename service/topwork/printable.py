"""Escapes for control characters, bidirectional overrides and surrogates in printed text."""

from __future__ import annotations

import os
import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, bidi controls, line and paragraph separators, lone surrogates."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def file_name(path: str | os.PathLike[str]) -> str:
    r"""Return a file's name as text that can be printed, sent and stored.

    An invalid UTF-8 byte becomes ``\xff``, a control character ``\u001b``, and a backslash is
    doubled, so the result is unique and reversible.
    """
    return printable(os.fspath(path).replace("\\", "\\\\"))


def printable(text: str) -> str:
    """Return text with terminal controls and bidirectional overrides escaped."""
    return _UNSAFE.sub(_escaped, text)


def encodable(text: str) -> str:
    """Return text with lone surrogates escaped, so that it can be encoded as UTF-8."""
    return _SURROGATE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # 0xDC80..0xDCFF are Python's surrogates of invalid UTF-8 bytes (PEP 383).
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
