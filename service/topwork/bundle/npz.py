"""Uncompressed .npz files of aligned arrays, readable by ``numpy.load``, without objects."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Alignment of the arrays in bytes: a cache line, sufficient for all SIMD instructions."""

_PADDING = 0x5457
"""Id of the zip extra field that pads the header."""


def encode(arrays: Mapping[str, tuple[NDArray[Any], str]]) -> bytes:
    """Return a file of named arrays, each with its dtype; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, (array, dtype) in arrays.items():
            with archive.open(
                _aligned_member(f"{name}.npy", buffer.tell()), "w", force_zip64=True
            ) as file:
                np.lib.format.write_array(
                    file, np.ascontiguousarray(array, dtype=dtype), version=(1, 0)
                )
    return buffer.getvalue()


def map_array(
    file: IO[bytes], whole: NDArray[np.uint8], info: zipfile.ZipInfo, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return an array of the archive ``file`` as a view of its content ``whole``.

    Raises ValueError and errors of ``zipfile`` and NumPy if it is not an array of ``dtype``.
    """
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{info.filename} is compressed or encrypted")
    file.seek(info.header_offset + 26)  # local header: lengths of the name and the extra field
    file.seek(info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
    end = file.tell() + info.file_size
    version = np.lib.format.read_magic(file)
    shape, fortran, found = np.lib.format.read_array_header_1_0(file)
    if version != (1, 0) or fortran or found != dtype:
        raise ValueError(f"{info.filename} has dtype {found}, not {dtype}")
    array = np.asarray(whole[file.tell() : end]).view(dtype)
    return array.reshape(shape)


def _aligned_member(name: str, at: int) -> zipfile.ZipInfo:
    """Return a zip member with aligned data if its local header starts at offset ``at``.

    The header that ``numpy.save`` writes before an array has a multiple of 64 bytes.
    """
    info = zipfile.ZipInfo(name)  # dated 1980, so that equal shards give equal bytes
    info.create_system = 3
    # Local header, name, extra field of the 64-bit sizes, header of the padding field.
    begin = at + 30 + len(name) + 20 + 4
    info.extra = struct.pack("<HH", _PADDING, -begin % ALIGNMENT) + bytes(-begin % ALIGNMENT)
    return info
