"""Groups of images, such as those of one patient, which the folds of a cross-validation keep whole.

A group is stored as a hash of its name, so that shards do not contain the names of patients.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GROUP_BYTES = 16
"""Length of a group's id; zeros mean that an image has no group."""


def group_id(name: str) -> bytes:
    """Return the id of a group, GROUP_BYTES of the sha256 of its name in composed form.

    Zeros if the name is empty.
    """
    if not name:
        return bytes(GROUP_BYTES)
    composed = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    return hashlib.sha256(composed).digest()[:GROUP_BYTES]


def group_folds(
    groups: NDArray[np.uint8],
    copies: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    folds: int,
    prefix: bytes,
) -> NDArray[np.int64]:
    """Return the fold of each row, (N,), or -1 for a row that belongs to no group.

    ``groups`` (N, GROUP_BYTES) has the groups' ids, ``copies`` (N,) a representative of each row's
    near-duplicates, ``targets`` (N,) the classes. Rows of one group, of any class, share a fold, as
    do groups with near-duplicates of each other, and rows without a group with their copies.

    Groups are assigned one by one, the largest first, each to the fold that has least of its
    classes (as scikit-learn's StratifiedGroupKFold does): a hash would leave folds empty, since
    there are often only a few groups. Only rows with a group count, so that a new class without
    groups moves no old row. ``prefix`` decides between groups of equal size.
    """
    values = np.ascontiguousarray(groups).view(np.dtype((np.void, GROUP_BYTES)))[:, 0]
    parent = _connect(values, copies)
    sizes: dict[int, Counter[int]] = defaultdict(Counter)
    keys: dict[int, bytes] = {}
    for row in np.flatnonzero(groups.any(axis=1)).tolist():
        root = _root(parent, int(copies[row]))
        sizes[root][int(targets[row])] += 1
        keys[root] = min(keys.get(root, b"\xff" * 32), values[row].tobytes())
    order = sorted(
        sizes,
        key=lambda root: (-sizes[root].total(), hashlib.sha256(prefix + keys[root]).digest()),
    )
    chosen = dict(zip(order, _balance([sizes[root] for root in order], folds), strict=True))
    return np.array([chosen.get(_root(parent, copy), -1) for copy in copies.tolist()], np.int64)


def _connect(values: NDArray[np.void], copies: NDArray[np.int64]) -> list[int]:
    """Return the parents of a forest whose trees are the connected representatives."""
    parent = list(range(len(values)))
    first: dict[bytes, int] = {}
    none = bytes(GROUP_BYTES)
    for row, value in enumerate(values.tolist()):
        if value != none:
            copy = int(copies[row])
            left, right = _root(parent, first.setdefault(value, copy)), _root(parent, copy)
            parent[max(left, right)] = min(left, right)
    return parent


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = row = parent[parent[row]]
    return row


def _balance(parts: Sequence[Counter[int]], folds: int) -> list[int]:
    """Return the fold of each part, a number of rows per class."""
    totals: Counter[int] = Counter()
    for part in parts:
        totals.update(part)
    loads: list[Counter[int]] = [Counter() for _ in range(folds)]
    chosen = []
    for part in parts:
        shares = [
            sum(load[target] / totals[target] * part[target] for target in sorted(part))
            for load in loads
        ]
        fold = min(zip(shares, map(Counter.total, loads), range(folds), strict=True))[2]
        loads[fold].update(part)
        chosen.append(fold)
    return chosen
