"""Escaping of file names and other untrusted text."""

from __future__ import annotations

import os
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.printable import encodable, file_name, printable

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Bidi_Control of Unicode's PropList.txt."""


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"daisy/1.jpg", "daisy/1.jpg"),
        ("caf\u00e9 \u2764\ufe0f/\u96db.jpg".encode(), "caf\u00e9 \u2764\ufe0f/\u96db.jpg"),
        (b"caf\xe9.jpg", "caf\\xe9.jpg"),
        (b"caf\\xe9.jpg", "caf\\\\xe9.jpg"),
        (b"a\x1b[31m\nb", "a\\u001b[31m\\u000ab"),
        ("gpj.\u202eexe".encode(), "gpj.\\u202eexe"),
        (b"\xc2\x85", "\\u0085"),
        (b"\x85", "\\x85"),
    ],
)
def test_file_name_escapes_unsafe_bytes(raw: bytes, escaped: str) -> None:
    """Invalid UTF-8, controls and backslashes are escaped; other text does not change."""
    assert file_name(os.fsdecode(raw)) == escaped


@pytest.mark.slow
@settings(max_examples=500)
@given(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=12))
def test_file_name_is_unique(first: bytes, second: bytes) -> None:
    """Different file names stay different, and can be encoded as UTF-8."""
    names = {file_name(os.fsdecode(raw)).encode() for raw in (first, second)}
    assert len(names) == len({first, second})


@pytest.mark.slow
def test_printable_escapes_all_unsafe_characters() -> None:
    """Exactly the categories Cc, Cs, Zl and Zp and the bidi controls are escaped."""
    for char in map(chr, range(sys.maxunicode + 1)):
        unsafe = unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in BIDI
        assert (printable(char) != char) == unsafe
        assert (encodable(char) != char) == (unicodedata.category(char) == "Cs")
