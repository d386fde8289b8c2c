"""Shards: immutable, memory-mapped files with the exemplars of one label.

A shard is an uncompressed .npz, readable by ``numpy.load``, whose arrays are aligned to 64 bytes.
The label is not in the shard but in the manifests that refer to it, so a label can be renamed.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from topwork.bundle import npz
from topwork.bundle.groups import GROUP_BYTES
from topwork.errors import Corrupt
from topwork.printable import encodable
from topwork.storage.files import open_file, short_path

_DTYPES = {
    "embeddings": "<f4",
    "digests": "|u1",
    "fingerprints": "|u1",
    "contents": "|u1",
    "seen": "|b1",
    "names": "|u1",
    "name_ends": "<i8",
    "thumbnails": "|u1",
    "thumbnail_ends": "<i8",
}
_GROUPS = "groups"
"""Array that is stored only if an exemplar has a group; without it a shard is as before groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """n exemplars of one label, in any order."""

    embeddings: NDArray[np.float32]
    """(n, D), the backbone's output."""
    digests: NDArray[np.uint8]
    """(n, 32), the image digests: sha256 of the preprocessed pixels."""
    fingerprints: NDArray[np.uint8]
    """(n, 32), perceptual hashes of 256 bits; those of near-duplicates differ in a few bits."""
    contents: NDArray[np.uint8]
    """(n, 32), sha256 of each encoded image file; zeros if unknown."""
    seen: NDArray[np.bool_]
    """(n,), True if the backbone was fine-tuned on the image."""
    names: Sequence[str]
    """n file names; empty if unknown."""
    thumbnails: Sequence[bytes]
    """n small JPEG files; empty if missing."""
    groups: NDArray[np.uint8]
    """(n, 16), ids of the exemplars' groups; zeros: none."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def where(self, rows: NDArray[np.bool_]) -> Shard:
        """Return the shard of the exemplars that the mask ``rows`` (n,) selects, in order."""
        selected = np.flatnonzero(rows).tolist()
        return Shard(
            embeddings=self.embeddings[selected],
            digests=self.digests[selected],
            fingerprints=self.fingerprints[selected],
            contents=self.contents[selected],
            seen=self.seen[selected],
            names=tuple(self.names[row] for row in selected),
            thumbnails=tuple(self.thumbnails[row] for row in selected),
            groups=self.groups[selected],
        )


def to_bytes(shard: Shard) -> bytes:
    """Encode a shard as a file; equal shards give equal bytes."""
    names = [name.encode("utf-8", "surrogatepass") for name in shard.names]
    arrays: dict[str, NDArray[Any]] = {
        "embeddings": shard.embeddings,
        "digests": shard.digests,
        "fingerprints": shard.fingerprints,
        "contents": shard.contents,
        "seen": shard.seen,
        "names": np.frombuffer(b"".join(names), dtype=np.uint8),
        "name_ends": _end_offsets(names),
        "thumbnails": np.frombuffer(b"".join(shard.thumbnails), dtype=np.uint8),
        "thumbnail_ends": _end_offsets(shard.thumbnails),
    }
    if shard.groups.any():
        arrays[_GROUPS] = shard.groups
    return npz.encode({name: (array, _DTYPES.get(name, "|u1")) for name, array in arrays.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Previews:
    """The thumbnails of a shard of n exemplars and the sha256 of their files, memory-mapped."""

    contents: NDArray[np.uint8]
    """(n, 32), as in ``Shard``."""
    thumbnails: NDArray[np.uint8]
    """All JPEG files, joined."""
    ends: NDArray[np.int64]
    """(n,), end of each in ``thumbnails``."""

    def preview(self, row: int) -> bytes:
        """Return the JPEG file of an exemplar; empty if it is missing."""
        start = int(self.ends[row - 1]) if row else 0
        return self.thumbnails[start : self.ends[row]].tobytes()


def open_previews(path: Path, digest: str, *, verified: bool) -> Previews:
    """Open the thumbnails of the shard at ``path``, without the rest.

    ``verified``: the sha256 is known to be right. Raises as ``open_shard``.
    """
    with _verified(path, "" if verified else digest) as (file, whole):
        with zipfile.ZipFile(file) as archive:
            contents, thumbnails, ends = (
                npz.map_array(file, whole, archive.getinfo(f"{name}.npy"), np.dtype(_DTYPES[name]))
                for name in ("contents", "thumbnails", "thumbnail_ends")
            )
        if contents.shape != (len(ends), 32) or ends.ndim != 1:
            raise ValueError(f"its contents are {contents.shape}")
        return Previews(contents=contents, thumbnails=thumbnails, ends=ends)


def open_embeddings(path: Path, digest: str, *, verified: bool) -> NDArray[np.float32]:
    """Open the embeddings (n, D) of the shard at ``path``, without the rest; see open_previews."""
    with _verified(path, "" if verified else digest) as (file, whole):
        with zipfile.ZipFile(file) as archive:
            dtype = np.dtype(_DTYPES["embeddings"])
            found = npz.map_array(file, whole, archive.getinfo("embeddings.npy"), dtype)
        if found.ndim != 2:
            raise ValueError(f"its embeddings are {found.shape}")
        return found


def open_shard(path: Path, digest: str) -> Shard:
    """Open the shard at ``path``; its arrays are read-only views of the mapped file.

    Raises Corrupt if it is missing, its sha256 is not ``digest``, or it is not a valid shard.
    """
    with _verified(path, digest) as (file, whole):
        return _parse(file, whole)


@contextmanager
def _verified(path: Path, digest: str) -> Iterator[tuple[IO[bytes], NDArray[np.uint8]]]:
    """Open and map the file at ``path``, with its sha256 unless ``digest`` is empty.

    Any other error of the block means that it is not a valid shard, and becomes Corrupt.
    """
    with open_file(path) as file:
        if digest and (found := hashlib.file_digest(file, "sha256").hexdigest()) != digest:
            raise Corrupt(f"{short_path(path)} has sha256 {found}, not {digest}: it was changed")
        try:
            if not file.seek(0, os.SEEK_END):
                raise ValueError("it is empty")
            yield file, np.memmap(file, dtype=np.uint8, mode="r")
        except Exception as error:  # zipfile and NumPy raise many classes on damaged files
            raise Corrupt(f"{short_path(path)} is not a valid shard: {error}") from error


def _parse(file: IO[bytes], whole: NDArray[np.uint8]) -> Shard:
    with zipfile.ZipFile(file) as archive:
        arrays = {
            name: npz.map_array(file, whole, archive.getinfo(f"{name}.npy"), np.dtype(dtype))
            for name, dtype in _DTYPES.items()
        }
        groups = np.zeros((len(arrays["embeddings"]), GROUP_BYTES), dtype=np.uint8)
        if f"{_GROUPS}.npy" in archive.namelist():
            groups = npz.map_array(file, whole, archive.getinfo(f"{_GROUPS}.npy"), groups.dtype)
        arrays[_GROUPS] = groups
    names = _split(arrays["names"], arrays["name_ends"])
    shard = Shard(
        embeddings=arrays["embeddings"],
        digests=arrays["digests"],
        fingerprints=arrays["fingerprints"],
        contents=arrays["contents"],
        seen=arrays["seen"],
        # Earlier versions stored names that are not UTF-8, which protobuf messages cannot hold.
        names=tuple(encodable(name.decode("utf-8", "surrogatepass")) for name in names),
        thumbnails=_split(arrays["thumbnails"], arrays["thumbnail_ends"]),
        groups=groups,
    )
    rows, width = (*shard.embeddings.shape, 0, 0)[:2]
    for name, shape in (
        ("embeddings", (rows, width)),
        ("digests", (rows, 32)),
        ("fingerprints", (rows, 32)),
        ("contents", (rows, 32)),
        ("seen", (rows,)),
        (_GROUPS, (rows, GROUP_BYTES)),
    ):
        if arrays[name].shape != shape:
            raise ValueError(f"its {name} are {arrays[name].shape}, not {shape}")
    if (arrays["seen"].view(np.uint8) > 1).any():
        raise ValueError("its seen flags are not all true or false")
    if len(shard.names) != rows or len(shard.thumbnails) != rows:
        raise ValueError(f"it does not have {rows} names and thumbnails")
    return shard


def _split(joined: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[bytes, ...]:
    edges = [0, *ends.tolist()]
    if edges != sorted(edges) or edges[-1] != len(joined):
        raise ValueError(f"its offsets do not increase to {len(joined)}")
    content = joined.tobytes()
    return tuple(content[a:b] for a, b in pairwise(edges))


def _end_offsets(parts: Sequence[bytes]) -> NDArray[np.int64]:
    return np.cumsum([len(part) for part in parts], dtype=np.int64)
