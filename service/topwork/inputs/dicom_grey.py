"""Look-up tables from DICOM samples to display values: rescale, window, palette (PS3.3 C.11).

A sample has up to 16 bits, so a table has at most 65,536 entries, however many pixels there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from topwork.errors import ImageError
from topwork.inputs.dicom_file import first_item, number, raw, words
from topwork.inputs.grey import share_of_white
from topwork.inputs.preprocess import DeepGrey

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Samples = NDArray[np.integer[Any]]
Values = NDArray[np.floating[Any]]


def grey_table(
    dataset: Dataset, dtype: np.dtype[Any], counts: NDArray[np.int64], mapping: DeepGrey
) -> NDArray[np.uint8]:
    """Return the shade (0 black, 255 white) of each sample, (256,) or (65536,).

    Samples have 8 or 16 bits by ``dtype``; as unsigned integers they index the table and
    ``counts``, their frequencies in the frame. The steps are: modality LUT or rescale; VOI LUT, or
    the first window, or else, by ``mapping``, the full range (``depth``) or robust statistics;
    inversion of MONOCHROME1; black padding. Enhanced files have these elements in the functional
    groups of the first frame. Raises ImageError.
    """
    stored = _all_samples(dtype)
    padding = _padding(dataset, stored, dtype)
    with np.errstate(all="ignore"):  # infinite values are refused, or are outside the window
        values = _modality(_group(dataset, "PixelValueTransformationSequence"), stored)
        if not np.isfinite(values).all():
            raise ImageError("the DICOM's rescale slope and intercept overflow")
        voi = _group(dataset, "FrameVOILUTSequence")
        share = _voi(voi, values)
        if share is None:
            visible = np.where(padding, 0, counts)
            share = (
                _full_range(values, visible > 0)
                if mapping == "depth"
                else share_of_white(values, visible, zero_is_black=False)
            )
    shade = np.rint(255 * share).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shade = 255 - shade
    shade[padding] = 0
    return shade


def palette_table(dataset: Dataset, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """Return the colour of each sample, (256, 3) or (65536, 3), RGB. Raises ImageError."""
    stored = _all_samples(dtype)
    colours = [
        _look_up(
            stored,
            dataset,
            f"{colour}PaletteColorLookupTableDescriptor",
            f"{colour}PaletteColorLookupTableData",
        )
        for colour in ("Red", "Green", "Blue")
    ]
    return np.stack([np.rint(255 * _share(*colour)).astype(np.uint8) for colour in colours], 1)


def _all_samples(dtype: np.dtype[Any]) -> Samples:
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return np.arange(256**dtype.itemsize).astype(unsigned).view(dtype).astype(np.int64)


def _group(dataset: Dataset, keyword: str) -> Dataset:
    """Return the functional group of the first frame, or the dataset itself without groups."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        first = first_item(dataset, groups)
        group = None if first is None else first_item(first, keyword)
        if group is not None:
            return group
    return dataset


def _padding(dataset: Dataset, stored: Samples, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Return a mask of the samples that are padding (PS3.3 C.7.5.1.1.2)."""
    value, limit = raw(dataset, "PixelPaddingValue"), raw(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(len(stored), np.bool_)
    # Like the samples: without unused bits, and signed if they are.
    ends = np.array([words(end)[0] for end in (value, limit) if end is not None])
    ends = ends.astype(f"u{dtype.itemsize}").view(dtype)
    unused = 8 * dtype.itemsize - dataset.BitsStored
    ends = ends << unused >> unused
    padding: NDArray[np.bool_] = (stored >= ends.min()) & (stored <= ends.max())
    return padding


def _modality(dataset: Dataset, stored: Samples) -> Values:
    lut = first_item(dataset, "ModalityLUTSequence")
    if lut is not None and "LUTData" in lut:
        return _look_up(stored, lut)[0]
    slope, intercept = (number(dataset, f"Rescale{part}") for part in ("Slope", "Intercept"))
    return stored * (1 if slope is None else slope) + (intercept or 0)


def _voi(dataset: Dataset, values: Values) -> Values | None:
    """Return the share of white, 0 to 1, of each value; None without a VOI LUT or a window."""
    lut = first_item(dataset, "VOILUTSequence")
    if lut is not None and "LUTData" in lut:
        return _share(*_look_up(values, lut))
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if width < (1 if function == "LINEAR" else np.finfo(float).tiny):
        raise ImageError(f"the DICOM's window is {width:g} wide")
    if function == "SIGMOID":  # PS3.3 C.11.2.1.3.1
        rising: Values = 1 / (1 + np.exp(-4 * (values - centre) / width))
        return rising
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":  # PS3.3 C.11.2.1.3.2
        raise ImageError(f"the DICOM's VOI LUT function is {function!r:.40}")
    share: Values = (values - centre) / width + 0.5
    share[values <= centre - width / 2] = 0
    share[values > centre + width / 2] = 1
    return share


def _full_range(values: Values, visible: NDArray[np.bool_]) -> Values:
    if not visible.any():
        return np.zeros_like(values)
    low, high = values[visible].min(), values[visible].max()
    share: Values = np.clip((values - low) / (high - low or 1), 0, 1)
    return share


def _share(entries: Values, bits: int) -> Values:
    # Entries may have unused bits above ``bits``.
    share: Values = np.minimum(entries / (2**bits - 1), 1)
    return share


def _look_up(
    values: Samples | Values,
    dataset: Dataset,
    descriptor: str = "LUTDescriptor",
    data: str = "LUTData",
) -> tuple[Values, int]:
    """Return the entries of a look-up table for ``values``, and their bits (PS3.3 C.11.1.1)."""
    header, entries = raw(dataset, descriptor), raw(dataset, data)
    if header is None or entries is None:
        raise ImageError(
            f"the DICOM has no {descriptor} or {data} (segmented tables are not supported)"
        )
    count, first, bits = words(header)[:3].tolist()
    count = count or 2**16
    # The first mapped value may be negative, even if the file does not say that it is signed.
    if header.VR == "SS" or (header.VR != "US" and values.min() < 0):
        first = (first ^ 0x8000) - 0x8000
    table = words(entries)
    if len(table) < count:
        table = words(entries, 1)
    if len(table) < count or not 8 <= bits <= 16:
        raise ImageError(
            f"the DICOM's {data} has {len(table)} bytes for {count} entries of {bits} bits"
        )
    index = np.clip(np.rint(values) - first, 0, count - 1).astype(np.intp)
    return table[index].astype(float), bits
