"""Location of a repository: a directory, or a bucket of an object store by URL."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Location: TypeAlias = Path | str
"""A directory, or a URL such as ``s3://bucket/prefix``."""

SCHEMES = ("s3", "gs", "az")
"""Schemes of the URLs of buckets: S3, Google Cloud Storage, Azure."""

CACHE_GIGABYTES = 20
"""Raising it lets a host keep more files of buckets, which it then need not download again."""


def cache_directory() -> Path:
    """Return the default cache directory of buckets, below $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"  # noqa: PTH117 # "" is "."
    return base / "topwork" / "objects"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCache:
    """The directory in which all processes of a host keep files of buckets by sha256."""

    directory: Path = field(default_factory=cache_directory)
    size: int = CACHE_GIGABYTES * 10**9
    """Bytes; the least recently used files are deleted beyond it."""


def to_location(text: str | os.PathLike[str]) -> Location:
    """Return the location that a user gave."""
    return text if isinstance(text, str) and is_url(text) else Path(text)


def is_url(location: object) -> bool:
    """Return True for a URL, of a bucket or not: opening it refuses those of unknown schemes."""
    return isinstance(location, str) and "://" in location


def bucket_key(url: str) -> str:
    """Return the same text for all spellings of a bucket's URL: without options and last slash."""
    return url.partition("?")[0].rstrip("/")


def absolute(location: Location) -> Location:
    """Return the location for processes with other working directories."""
    return location.absolute() if isinstance(location, Path) else location
