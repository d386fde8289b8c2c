"""Index of a revision's examples, examples.npz: all about them except embeddings and previews."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.bundle import npz
from topwork.bundle.exemplars import ShardRows, shard_rows
from topwork.bundle.shards import Shard
from topwork.errors import Corrupt

FILE = "examples.npz"

RANKED = 3
"""Raising it stores more probabilities of each example, 8 bytes each.

Those that are not stored are at most 1 / (RANKED + 1), so higher thresholds can be judged exactly.
"""

_DTYPES = {
    "digests": "|u1",
    "targets": "<i4",
    "probabilities": "<f4",
    "suggested": "<i4",
    "suggested_probabilities": "<f4",
    "suspicion": "<f4",
    "folds": "|i1",
    "parts": "<i4",
    "rows": "<i4",
    "names": "|u1",
    "name_ends": "<i8",
    "ranked": "<i4",
    "ranked_probabilities": "<f4",
    "points": "<f4",
}
_LATER = {"ranked": RANKED, "ranked_probabilities": RANKED, "points": 2}
"""Columns of the arrays that files of earlier releases lack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleIndex:
    """N examples, pairs of image and label, in the order of ``Exemplars``."""

    labels: tuple[str, ...]
    """The revision's labels; not stored in the file, for the manifest has them."""
    digests: NDArray[np.uint8]
    """(N, 32), the image digests."""
    targets: NDArray[np.int32]
    """(N,), class indices."""
    probabilities: NDArray[np.float32]
    """(N,), out-of-fold probability of the example's label; NaN: not evaluated."""
    suggested: NDArray[np.int32]
    """(N,), class index of the most probable other label; -1: not evaluated."""
    suggested_probabilities: NDArray[np.float32]
    """(N,), its out-of-fold probability; NaN: not evaluated."""
    suspicion: NDArray[np.float32]
    """(N,), margin by which the label is suspected to be wrong, 0 to 1; 0: it is not suspected."""
    folds: NDArray[np.int8]
    """(N,), fold of the cross-validation; -1: not evaluated."""
    parts: NDArray[np.int32]
    """(N,), index of the example's shard in the manifest."""
    rows: NDArray[np.int32]
    """(N,), row in the shard."""
    names: NDArray[np.uint8]
    """All file names, joined, in UTF-8."""
    name_ends: NDArray[np.int64]
    """(N,), end of each name in ``names``."""
    ranked: NDArray[np.int32]
    """(N, RANKED), class indices of the highest out-of-fold probabilities, highest first; -1: there
    is none, the example was not evaluated, or an earlier release published the revision."""
    ranked_probabilities: NDArray[np.float32]
    """(N, RANKED), the probabilities; NaN where ``ranked`` is -1."""
    points: NDArray[np.float32]
    """(N, 2), place on the embedding map, rightwards and downwards, 0 to 1; NaN: not on it."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def name_starts(self) -> NDArray[np.int64]:
        """(N,), start of each name in ``names``."""
        return np.concatenate([[0], self.name_ends[:-1]]).astype(np.int64)[: len(self)]

    def name(self, row: int) -> str:
        """Return the file name of an example; empty: unknown."""
        start = int(self.name_ends[row - 1]) if row else 0
        return self.names[start : self.name_ends[row]].tobytes().decode("utf-8", "replace")

    def size(self) -> int:
        """Return the size in memory in bytes."""
        return sum(getattr(self, name).nbytes for name in _DTYPES)


def make_index(
    labels: tuple[str, ...],
    digests: NDArray[np.uint8],
    targets: NDArray[np.int64],
    names: Sequence[str],
    sources: ShardRows,
    **scores: NDArray[Any],
) -> ExampleIndex:
    """Return an index; ``scores`` are its fields about the evaluation, without them unset."""
    joined = [name.encode("utf-8", "replace") for name in names]
    count = len(targets)
    unset: dict[str, NDArray[Any]] = {
        "probabilities": np.full(count, np.nan),
        "suggested": np.full(count, -1),
        "suggested_probabilities": np.full(count, np.nan),
        "suspicion": np.zeros(count),
        "folds": np.full(count, -1),
        **_unset_later(count),
    }
    arrays = {
        "digests": digests,
        "targets": targets,
        "parts": sources.parts,
        "rows": sources.rows,
        "names": np.frombuffer(b"".join(joined), dtype=np.uint8),
        "name_ends": np.cumsum([len(name) for name in joined]),
        **unset,
        **scores,
    }
    typed = {name: np.asarray(arrays[name], dtype=dtype) for name, dtype in _DTYPES.items()}
    return ExampleIndex(labels=labels, **typed)


def index_of_shards(parts: Sequence[tuple[str, Shard]]) -> ExampleIndex:
    """Return the index of shards, pairs of label and shard, without scores."""
    chosen = shard_rows(parts)
    names = [name for _, shard in parts for name in shard.names]
    digests = np.concatenate([shard.digests for _, shard in parts])
    flat = chosen.flat([len(shard) for _, shard in parts])
    return make_index(
        chosen.labels, digests[flat], chosen.targets, [names[row] for row in flat], chosen
    )


def to_bytes(index: ExampleIndex) -> bytes:
    """Encode an index as a file that ``numpy.load`` reads; equal indexes give equal bytes."""
    return npz.encode({name: (getattr(index, name), dtype) for name, dtype in _DTYPES.items()})


def from_bytes(content: bytes, labels: tuple[str, ...], shards: int) -> ExampleIndex:
    """Decode the index of a revision with these labels and this number of shards.

    Raises Corrupt if it is not valid.
    """
    try:
        file, whole = io.BytesIO(content), np.frombuffer(content, dtype=np.uint8)
        with zipfile.ZipFile(file) as archive:
            arrays = {
                name: npz.map_array(file, whole, archive.getinfo(f"{name}.npy"), np.dtype(dtype))
                for name, dtype in _DTYPES.items()
                if name not in _LATER or f"{name}.npy" in archive.namelist()
            }
    except Exception as error:  # zipfile and NumPy raise many classes on damaged files
        raise Corrupt(f"{FILE} cannot be used: {error}") from error
    count = len(arrays["targets"]) if arrays["targets"].ndim else 0
    arrays = {**_unset_later(count), **arrays}
    tables = {"digests": 32, **_LATER}
    for name, found in arrays.items():
        shape = (count, tables[name]) if name in tables else (count,)
        if name == "names":
            shape = found.shape[:1]
        if found.shape != shape:
            raise Corrupt(f"{FILE} cannot be used: its {name} are {found.shape}, not {shape}")
    ends = arrays["name_ends"]
    if (
        not _within(arrays["targets"], 0, len(labels))
        or not _within(arrays["suggested"], -1, len(labels))
        or not _within(arrays["ranked"], -1, len(labels))
        or not _within(arrays["parts"], 0, shards)
        or not _within(arrays["rows"], 0, 2**31)
        or (np.diff(ends, prepend=0) < 0).any()
        or (count and ends[-1] != len(arrays["names"]))
    ):
        raise Corrupt(f"{FILE} cannot be used: it refers to labels, shards or names that are not")
    return ExampleIndex(labels=labels, **arrays)


def rows_with(digests: NDArray[np.uint8], wanted: Sequence[str]) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows of ``digests`` (n, 32) that are in ``wanted``, hexadecimal."""
    raw = {bytes.fromhex(digest) for digest in wanted}
    first = np.frombuffer(b"".join(digest[:8] for digest in raw), dtype=np.uint64)
    found = np.isin(np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0], first)
    for row in np.flatnonzero(found).tolist():
        found[row] = digests[row].tobytes() in raw
    return found


def rows_starting_with(index: ExampleIndex, prefix: str) -> NDArray[np.bool_]:
    """Return a mask (N,) of the examples whose digest begins with ``prefix``, hexadecimal."""
    whole = np.frombuffer(bytes.fromhex(prefix[: len(prefix) & ~1]), dtype=np.uint8)
    found = (index.digests[:, : len(whole)] == whole).all(axis=1)
    if len(prefix) % 2:
        found &= index.digests[:, len(whole)] >> 4 == int(prefix[-1], 16)
    return np.asarray(found)


def rows_with_name(index: ExampleIndex, name: str, *, prefix: bool) -> NDArray[np.bool_]:
    """Return a mask (N,) of the examples whose name is ``name``, or begins so with ``prefix``."""
    text = np.frombuffer(name.encode("utf-8", "replace"), dtype=np.uint8)
    starts = index.name_starts
    lengths = index.name_ends - starts
    found = lengths >= len(text) if prefix else lengths == len(text)
    for place, byte in enumerate(text):
        rows = np.flatnonzero(found)
        found[rows] = index.names[starts[rows] + place] == byte
    return found


def _unset_later(count: int) -> dict[str, NDArray[Any]]:
    """Return the arrays that a file of an earlier release lacks."""
    return {
        name: np.full((count, columns), -1 if name == "ranked" else np.nan, dtype=_DTYPES[name])
        for name, columns in _LATER.items()
    }


def _within(values: NDArray[np.integer], low: int, high: int) -> bool:
    return not len(values) or (int(values.min()) >= low and int(values.max()) < high)
