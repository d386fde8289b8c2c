"""Embeddings that the client computes: the spec of their space, and the checks of a vector.

A client sends float32 vectors of a *space*, the name of what computed them, such as a network and
its version. Vectors of different spaces have nothing in common, so a model takes those of one.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.errors import ImageError, InvalidInput
from topwork.inputs.spec import InputSpec
from topwork.limits import DEFAULT_LIMITS, InputLimits

LARGEST_WIDTH = 16_384
"""Raising it allows wider embeddings, which take more memory for each example."""

LARGEST_VALUE = np.float32(1e15)
"""Raising it allows larger values, until their squares are no longer finite in float32."""

LONGEST_SPACE = 100
"""Raising it allows longer names of spaces, in characters."""

CELL = 2.0**-6
"""Raising it makes vectors near-duplicates that differ more: width of a cell of a projection.

With it, vectors are near-duplicates (20 of 256 bits) if their difference is up to about 0.15 % of
their length, such as those of a network that ran in another precision; vectors that differ by
2 % have nothing in common. Vectors of a table often have nearly one direction, because one column
has the largest numbers, so a wider cell would make near-duplicates of different rows.
"""

_UNIT = 2.0**-20
"""Coordinates are rounded to it, so that sums are exact in any order on any machine."""

_CELL = round(CELL / _UNIT * math.sqrt((256**2 - 1) / 3))
"""CELL in units, times the standard deviation of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec(InputSpec):
    """The space of a model's embeddings. Raises ValueError if a field is invalid."""

    kind: Literal["embedding"] = "embedding"
    space: str
    """Name of what computes the embeddings, chosen by the client."""
    width: int
    """Numbers of an embedding."""

    def __post_init__(self) -> None:
        name = self.space
        if not (0 < len(name) <= LONGEST_SPACE and name.isprintable() and name == name.strip()):
            raise ValueError(
                f"the space {name[:LONGEST_SPACE]!r} must have 1 to {LONGEST_SPACE} visible "
                "characters, without white space at the ends"
            )
        if not 1 <= self.width <= LARGEST_WIDTH:
            raise ValueError(f"the width {self.width} must be between 1 and {LARGEST_WIDTH}")


@dataclass(frozen=True, slots=True)
class SentEmbedding:
    """A vector as a client sends it; not checked yet."""

    numbers: Sequence[float] | NDArray[Any]
    """Numbers become an array only when they are needed."""
    space: str = ""
    """Empty: the client does not say."""

    @property
    def size(self) -> int:
        """Size in bytes as float32."""
        return 4 * len(self.numbers)


def checked(embedding: SentEmbedding, spec: EmbeddingSpec) -> Float32Array:
    """Return the embedding (D,). Raises ImageError for another space, and as ``to_row``."""
    if embedding.space not in {"", spec.space}:
        raise _invalid(
            f"is of the space {embedding.space[:LONGEST_SPACE]!r}; the model takes the space "
            f"{spec.space!r}"
        )
    numbers = embedding.numbers
    if not isinstance(numbers, np.ndarray):
        numbers = np.fromiter(numbers, dtype=np.float32, count=len(numbers))
    return to_row(numbers, spec)


def to_row(values: NDArray[Any], spec: EmbeddingSpec) -> Float32Array:
    """Return ``values`` as an embedding (D,), with 0 for -0, which is equal and has other bytes.

    Raises ImageError if the shape or type differs, or a value is not finite or too large.
    """
    if values.dtype != np.float32:
        raise _invalid(f"has numbers of type {values.dtype}; they must be float32")
    if values.shape != (spec.width,):
        found = f"{len(values)} numbers" if values.ndim == 1 else f"the shape {values.shape}"
        raise _invalid(f"has {found}; the space {spec.space!r} has {spec.width}")
    usable = np.abs(values) <= LARGEST_VALUE  # also false for NaN
    if not usable.all():
        place = int(usable.argmin())
        raise _invalid(
            f"has the value {values[place]:g} at {place}; values must be finite, and at most "
            f"{LARGEST_VALUE:g} from 0"
        )
    return np.asarray(values + np.float32(0))


def prepare(
    content: bytes,
    spec: EmbeddingSpec,
    *,
    limits: InputLimits = DEFAULT_LIMITS,  # noqa: ARG001 # the spec's width limits the content
) -> Float32Array:
    """Return the embedding (D,) of a stored one: little-endian float32. Raises as ``to_row``."""
    if len(content) % 4:
        raise _invalid(f"is {len(content)} bytes; it must be float32, of 4 bytes each")
    return to_row(np.frombuffer(content, dtype="<f4").astype(np.float32, copy=False), spec)


def to_content(row: Float32Array) -> bytes:
    """Return an embedding as it is stored; the inverse of ``prepare``."""
    return row.astype("<f4", copy=False).tobytes()


def digest(row: Float32Array) -> str:
    """Return the sha256 of an embedding's numbers, in hexadecimal."""
    return hashlib.sha256(to_content(row)).hexdigest()


def fingerprint(row: Float32Array) -> NDArray[np.uint8]:
    """Return the signs of 256 periodic random projections of an embedding, (32,).

    A projection is that of the direction and of the logarithm of the length, so distances are
    relative to the length. It is cut into cells of width CELL, with the signs + and - in turn: of
    two vectors that are a small part of a cell apart, few signs differ; of all others about half
    (Raginsky and Lazebnik, NIPS 2009). Equal vectors have equal bytes on all machines.
    """
    wide = row.astype(np.float64)
    length = math.sqrt(math.fsum(np.square(wide).tolist()))  # exact, so in any order
    if not length:
        return np.zeros(32, dtype=np.uint8)
    scaled = np.append(wide / length, math.log(length))
    weights, phases = _projections(len(scaled))
    places = weights @ np.rint(scaled / _UNIT) + phases
    return np.packbits(np.floor(places / _CELL) % 2 == 1)


@functools.lru_cache(maxsize=2)
def _projections(width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (256, ``width``), odd numbers within 255, and phases (256,) within two cells.

    They are fixed: bytes of SHAKE-256. All sums of them with whole numbers are exact in float64.
    """
    stream = hashlib.shake_256(b"topwork embedding fingerprint")
    drawn = np.frombuffer(stream.digest(256 * 4 + 256 * width), dtype=np.uint8)
    phases = drawn[: 256 * 4].view("<u4") % (2 * _CELL)
    weights = 2 * drawn[256 * 4 :].reshape(256, width).astype(np.float64) - 255
    return weights, phases.astype(np.float64)


def _invalid(fault: str) -> ImageError:
    return ImageError(f"the embedding {fault}", field="embedding", reason="EMBEDDING_INVALID")


def space_of(space: str, width: int) -> EmbeddingSpec:
    """Return the spec of a new space. Raises InvalidInput if it is not possible."""
    try:
        return EmbeddingSpec(space=space, width=width)
    except ValueError as error:
        raise InvalidInput(str(error), field="embedding") from None
