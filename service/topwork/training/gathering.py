"""Embeddings that are gathered row by row, without a second copy; many of them in a file."""

from __future__ import annotations

import mmap
import tempfile

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.embedding_rows import MAX_NUMBERS

BLOCK_ROWS = 4096
"""Rows of a block; raising it wastes more memory for the last one, and makes fewer blocks."""


class GatheredEmbeddings:
    """Blocks of embeddings (BLOCK_ROWS, D). Those beyond MAX_NUMBERS values lie in files.

    The files have no names, and end with the arrays. Raises OSError if the directory of temporary
    files is full.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.float32]] = []
        self._rows = 0

    def append(self, row: NDArray[np.float32]) -> None:
        """Add an embedding (D,)."""
        place = self._rows % BLOCK_ROWS
        if not place:
            mapped = (self._rows + BLOCK_ROWS) * len(row) > MAX_NUMBERS
            self._blocks.append(_block(len(row), mapped=mapped))
        self._blocks[-1][place] = row
        self._rows += 1

    def parts(self) -> list[NDArray[np.float32]]:
        """Return all embeddings (N, D) in parts, in order."""
        last = self._rows - BLOCK_ROWS * (len(self._blocks) - 1)
        return [*self._blocks[:-1], self._blocks[-1][:last]]


def _block(width: int, *, mapped: bool) -> NDArray[np.float32]:
    if not mapped:
        return np.empty((BLOCK_ROWS, width), dtype=np.float32)
    with tempfile.TemporaryFile(prefix="topwork-") as file:
        size = BLOCK_ROWS * width * 4
        file.truncate(size)
        mapping = mmap.mmap(file.fileno(), size)
    return np.ndarray((BLOCK_ROWS, width), dtype=np.float32, buffer=mapping)
