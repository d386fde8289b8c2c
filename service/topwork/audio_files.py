"""Suffixes of files of audio; everywhere such a file is audio, whatever it contains."""

from __future__ import annotations

import os
from pathlib import PurePath

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")
"""In lower case."""


def is_audio(path: str | os.PathLike[str]) -> bool:
    """Return True if a file is audio by the suffix of its name."""
    return PurePath(path).suffix.casefold() in SUFFIXES
