"""Tone mapping of deep greyscale (more than 8 bits, or signed) to 8 bits for the backbone.

The preprocess spec names one of two mappings. ``depth`` takes the upper 8 bits of the smallest
usual depth that holds the largest sample, so a single bright pixel may quarter the brightness of
all others. ``percentiles`` is linear between two robust statistics of the samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError
from topwork.inputs.preprocess import DeepGrey

DEPTHS = (8, 10, 12, 14, 16)
"""The sample depths, in bits, of scanners and cameras, whatever container they write."""

BRIGHTEST = 0.99, 0.999
"""Percentiles, as shares, that bound the brightest samples and, mirrored, the darkest.

Raising the first lets small bright parts, such as a marker, set the brightness of the whole
picture; raising the second lets defective pixels do so.
"""

_BLOCK = 2**20  # samples per conversion; bounds temporary memory

Shades = NDArray[np.uint8]


def to_eight_bits(
    samples: NDArray[Any],
    mapping: DeepGrey,
    *,
    depth: int = 16,
    transparent: int | None = None,
) -> Shades:
    """Return the shade, 0 black and 255 white, of each integer sample.

    ``depth`` is the depth in the file's header. Samples equal to ``transparent`` become white and
    are excluded from the statistics. Raises ImageError if the samples do not fit 16 bits.
    """
    flat = samples.reshape(-1)
    low, high = int(flat.min()), int(flat.max())
    if low < -(2**15) or high >= 2**16 or high - low >= 2**16:
        raise ImageError(f"the image has samples from {low} to {high}; 16 bits are supported")
    # At most 65,536 different samples, so a look-up table is cheaper than arithmetic.
    counts = np.zeros(high - low + 1, np.int64)
    for block in _blocks(flat):
        counts += np.bincount(np.subtract(block, low, dtype=np.intp), minlength=len(counts))
    if transparent is not None and low <= transparent <= high:
        counts[transparent - low] = 0
    values = np.arange(low, high + 1)
    if mapping == "depth":
        table = _upper_bits(values, counts, depth)
    else:
        share = share_of_white(values, counts, zero_is_black=True)
        table = np.rint(255 * share).astype(np.uint8)
    if transparent is not None and low <= transparent <= high:
        table[transparent - low] = 255
    shades = np.empty(flat.shape, np.uint8)
    for block, output in zip(_blocks(flat), _blocks(shades), strict=True):
        output[:] = table[np.subtract(block, low, dtype=np.intp)]
    return shades.reshape(samples.shape)


def share_of_white(
    values: NDArray[Any], counts: NDArray[np.int64], *, zero_is_black: bool
) -> NDArray[np.float64]:
    """Return the brightness of each value, 0 to 1, given the ``counts`` of its samples.

    It is linear from the mean of the darkest samples (black) to the mean of the brightest (white);
    the most extreme sample at either end is ignored. If ``zero_is_black``, black is at most 0.
    """
    order = np.argsort(values, kind="stable")
    ascending, reached = values[order], np.cumsum(counts[order])
    total = int(reached[-1])
    if not total:
        return np.zeros(len(values))
    last = max(min(BRIGHTEST[1] * total, total - 1), 1)
    first = min(BRIGHTEST[0] * total, last - 1)
    white = _mean_between(ascending, reached, first, last)
    black = _mean_between(ascending, reached, total - last, total - first)
    if zero_is_black:
        black = min(black, 0.0)
    if white <= black:
        white = float(ascending[np.searchsorted(reached, total)])  # the brightest sample
    return np.clip((values - black) / ((white - black) or 1), 0, 1)


def _mean_between(
    ascending: NDArray[Any], reached: NDArray[np.int64], first: float, last: float
) -> float:
    """Return the mean of the samples from rank ``first`` to ``last``; ranks may be fractions."""
    weights = np.diff(np.clip(reached, first, last), prepend=first)
    return float(ascending @ weights) / (last - first)


def _upper_bits(values: NDArray[Any], counts: NDArray[np.int64], depth: int) -> Shades:
    """Return the upper 8 bits of each value; an offset makes signed values positive first."""
    present = values[counts > 0]
    low, high = (int(present[0]), int(present[-1])) if len(present) else (0, 0)
    offset = 1 << (-low - 1).bit_length() if low < 0 else 0
    least = depth if depth < DEPTHS[-1] else DEPTHS[0]
    bits = next((usual for usual in DEPTHS if usual >= least and high + offset < 1 << usual), None)
    if bits is None:
        raise ImageError(f"the image has samples from {low} to {high}; 16 bits are supported")
    return ((values + offset) >> (bits - 8)).astype(np.uint8)


def _blocks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield consecutive views of an array."""
    for start in range(0, len(flat), _BLOCK):
        yield flat[start : start + _BLOCK]
