"""Decoding cost of HEVC (ITU-T H.265) and AV1 pictures: coded pixels and passes over them."""

from __future__ import annotations

from topwork.errors import ImageError
from topwork.inputs.images.bits import Bits
from topwork.inputs.images.work import Steps

MOST_FRAMES = 8
"""Raising it lets more AV1 frames be decoded for a single image; layers are frames, too."""

_SEQUENCE_PARAMETERS = 33
_FIRST_NON_PICTURE = 32
_HEADER = 256  # bytes that contain the sizes, whatever precedes them
_SIZE_STEPS = 20  # cost of reading a size; most files have a single size


def hevc_passes(configuration: bytes, content: bytes, steps: Steps) -> tuple[int, int]:
    """Return the coded pixels and slices of an ``hvc1`` item; a slice may cover all pixels.

    Raises ImageError for more than one picture, or too many NAL units.
    """
    if configuration[21] & 3 != 3:
        raise ImageError("the HEIF's NAL units have lengths of less than 4 bytes")
    sizes, slices, pictures = [], 0, 0
    for unit in (*_configured(configuration, steps), *_units(content, steps)):
        kind = unit[0] >> 1 & 63
        if kind == _SEQUENCE_PARAMETERS:
            steps.take(_SIZE_STEPS)
            sizes.append(_hevc_pixels(unit))
        elif kind < _FIRST_NON_PICTURE:
            slices += 1
            pictures += unit[2] >> 7  # first_slice_segment_in_pic_flag
    if pictures > 1 or not sizes:
        raise ImageError(f"the HEIF is damaged: a still of {pictures} pictures, {len(sizes)} sizes")
    return max(sizes), slices


def av1_passes(content: bytes, steps: Steps) -> tuple[int, int]:
    """Return the coded pixels of an ``av01`` item, and its frames of that size.

    Raises ImageError for more than MOST_FRAMES, or too many OBUs.
    """
    at, pixels, frames = 0, 0, 0
    while at < len(content):
        steps.take()
        header = content[at]
        at += 2 if header & 4 else 1
        length = len(content) - at
        if header & 2:
            length, at = _leb128(content, at)
        kind = header >> 3 & 15
        if kind == 1:
            steps.take(_SIZE_STEPS)
            pixels = max(pixels, _av1_pixels(content[at : at + min(length, _HEADER)]))
        elif kind in {3, 6}:
            frames += 1
        at += length
    if frames > MOST_FRAMES or not pixels:
        raise ImageError(f"the AVIF has {frames} frames of {pixels} pixels for a single image")
    return pixels, frames


def _configured(configuration: bytes, steps: Steps) -> list[bytes]:
    """Return the NAL units of an ``hvcC`` box (ISO/IEC 14496-15, 8.3.3.1)."""
    units, at = [], 23
    for _ in range(configuration[22]):
        count = int.from_bytes(configuration[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            steps.take()
            length = int.from_bytes(configuration[at : at + 2])
            units.append(configuration[at + 2 : at + 2 + length])
            at += 2 + length
    return [unit for unit in units if unit]


def _units(content: bytes, steps: Steps) -> list[bytes]:
    """Return the first bytes of each NAL unit of an item."""
    units, at = [], 0
    while at + 4 < len(content):
        steps.take()
        length = int.from_bytes(content[at : at + 4])
        if length:
            units.append(content[at + 4 : at + 4 + min(length, _HEADER)])
        at += 4 + length
    return units


def _hevc_pixels(unit: bytes) -> int:
    """Return width times height of sequence parameters (ITU-T H.265, 7.3.2.2)."""
    bits = Bits(unit[2:_HEADER].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + 96)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for profile, level in present:
        bits.read(88 * profile + 8 * level)
    bits.exponential()
    if bits.exponential() == 3:  # 4:4:4
        bits.read(1)
    return bits.exponential() * bits.exponential()


def _av1_pixels(header: bytes) -> int:
    """Return width times height of a sequence header (AV1, 5.5.1)."""
    bits = Bits(header)
    bits.read(4)
    if bits.read(1):  # reduced_still_picture_header
        bits.read(5)
    else:
        _skip_operating_points(bits)
    wide, high = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(wide) + 1) * (bits.read(high) + 1)


def _skip_operating_points(bits: Bits) -> None:
    delay = 0
    if bits.read(1):  # timing_info_present_flag
        bits.read(64)
        if bits.read(1):  # equal_picture_interval
            bits.exponential()  # uvlc() is the same code
        if bits.read(1):  # decoder_model_info_present_flag
            delay = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)  # seq_tier
        if delay and bits.read(1):
            bits.read(2 * delay + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)


def _leb128(content: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length integer and the offset of its end."""
    value = 0
    for shift in range(0, 56, 7):
        byte = content[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            break
    return value, at
