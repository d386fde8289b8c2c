"""Table of the supported formats and the functions that open their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from PIL import Image

from topwork.inputs import dicom
from topwork.inputs.images.bmp import open_bmp
from topwork.inputs.images.gif import open_gif
from topwork.inputs.images.heif import open_heif
from topwork.inputs.images.jpeg import open_jpeg
from topwork.inputs.images.jpeg2000 import open_jpeg2000
from topwork.inputs.images.png import open_png
from topwork.inputs.images.pnm import open_pnm
from topwork.inputs.images.tiff import open_tiff
from topwork.inputs.images.webp import open_webp
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits

Opener: TypeAlias = Callable[[bytes, PreprocessSpec, InputLimits], Image.Image]
"""Returns the image in a file, decoded or not yet.

Raises ImageError, before decoding, for too many pixels or another excessive cost, and any exception
for a damaged file.
"""


OPENERS: Mapping[str, Opener] = {
    "JPEG": open_jpeg,
    "PNG": open_png,
    "WEBP": open_webp,
    "GIF": open_gif,
    "BMP": open_bmp,
    "TIFF": open_tiff,
    "HEIF": open_heif,
    "AVIF": open_heif,
    "JPEG 2000": open_jpeg2000,
    "PNM": open_pnm,
    "DICOM": dicom.open_dicom,
}
"""By the name that ``signatures.recognise`` returns."""
