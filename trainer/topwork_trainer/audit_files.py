"""Audit of image files: oddities in the files' headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

from PIL import ExifTags, Image

from topwork.bundle.findings import Finding, Severity
from topwork.errors import ImageError
from topwork.inputs.data.photos import Photo
from topwork.inputs.images.heif import open_heif
from topwork.inputs.images.signatures import recognise
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import DEFAULT_LIMITS
from topwork.training.embed import Skipped
from topwork_trainer.audit_findings import (
    finding,
    left_out_findings,
    skipped_findings,
    too_few_images,
    usable_images,
)
from topwork_trainer.data import Photos

WARN_ENLARGED = 2.0
"""Raising it warns about fewer small images: the enlargement from which on a warning is given.

Measured on 2,000 photos of flowers: shrunk so that they had to be enlarged 1.4 times all cost 0.5
points of accuracy, 2 times 2.0, 2.8 times 2.9, 4 times 4.1, 7 times 8.0.
"""

NOTE_ELONGATED = 2.0
"""Raising it notes fewer long images: the ratio of the sides; at 2 the crop loses half of it."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats whose headers it reads without a plugin."""
_SEQUENCES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}
"""Formats whose further frames are images; those of a phone's JPEG (MPO) are previews."""


def audit_files(photos: Photos, skipped: Sequence[Skipped], spec: PreprocessSpec) -> list[Finding]:
    """Return the findings about the training files that ``scan`` found, in a fixed order.

    ``skipped`` is the list that ``embed`` returned for them. The headers of all other files are
    read again, without the pixels; formats that Pillow cannot read have no findings of headers.
    """
    skipped_names = {image.name for image in skipped}
    headers: list[_Header] = []
    gone = []
    for photo in photos.train:
        if photo.name in skipped_names:
            continue
        try:
            headers += _read_header(photo, spec)
        except (OSError, ImageError) as error:
            message = f"{photo.name} was used but can no longer be read: {error}"
            gone.append(finding("unreadable", "error", message, [photo]))
    return [
        *gone,
        *skipped_findings(skipped, "pixel by pixel"),
        *too_few_images(usable_images(photos.train, skipped)),
        *_enlarged(headers, spec),
        *_oddities(headers, spec),
        *left_out_findings(photos.left_out),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """Properties of an image that are known without its pixels."""

    source: Photo
    short: int
    """Length of the short side in pixels."""
    elongation: float
    """Ratio of the long side to the short one."""
    grey: bool
    turned: bool
    animated: bool


class HeaderFacts(TypedDict):
    """Properties of a header, for storage."""

    short: int
    elongation: float
    grey: bool
    turned: bool
    animated: bool


@runtime_checkable
class AuditedBefore(Protocol):
    """Photo whose header was read earlier; its file may be gone."""

    def header_facts(self) -> HeaderFacts | None:
        """Return what ``header_facts`` returned for it."""


def header_facts(photo: Photo, spec: PreprocessSpec) -> HeaderFacts | None:
    """Return the properties of a file's header; None if Pillow cannot read it.

    Raises OSError or ImageError if the file cannot be opened.
    """
    for header in _read_header(photo, spec):
        return HeaderFacts(
            short=header.short,
            elongation=header.elongation,
            grey=header.grey,
            turned=header.turned,
            animated=header.animated,
        )
    return None


def _read_header(photo: Photo, spec: PreprocessSpec) -> list[_Header]:
    """Return the header of a file, or [] if Pillow cannot read it: the decoder may still do.

    Raises OSError or ImageError if the file cannot be opened.
    """
    if isinstance(photo, AuditedBefore):
        facts = photo.header_facts()
        return [] if facts is None else [_Header(source=photo, **facts)]
    with photo.open() as file:
        is_heif = recognise(file.read(256)) == "HEIF"
        file.seek(0)
        try:
            with (
                open_heif(file.read(), spec, DEFAULT_LIMITS)
                if is_heif
                else Image.open(file, formats=_FORMATS)
            ) as image:
                short, long = sorted(image.size)
                header = _Header(
                    source=photo,
                    short=short,
                    elongation=long / short,
                    grey=image.mode in {"1", "L", "LA", "I"} or image.mode.startswith("I;16"),
                    turned=_is_turned(image),
                    animated=image.format in _SEQUENCES and getattr(image, "is_animated", False),
                )
        except Exception:
            return []
    return [header]


def _is_turned(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode all pixels to look for EXIF data behind them
    try:
        turned = image.info.get("turned")  # HEIC: from its image properties
        return turned or image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:
        return False  # an image with damaged metadata is still usable


def _enlarged(headers: Sequence[_Header], spec: PreprocessSpec) -> Iterator[Finding]:
    kinds: tuple[tuple[str, Severity, float, float], ...] = (
        ("tiny", "warning", WARN_ENLARGED, float("inf")),
        ("enlarged", "note", 1 + 1e-9, WARN_ENLARGED),
    )
    for kind, severity, least, limit in kinds:
        small = [header for header in headers if least <= spec.resize / header.short < limit]
        if small:
            worst = min(small, key=lambda header: (header.short, header.source.name))
            message = (
                f"{len(small)} of {len(headers)} images have a short side below the {spec.resize} "
                f"pixels to which it is scaled; that of {worst.source.name} has only "
                f"{worst.short} and is enlarged {spec.resize / worst.short:.1f} times"
            )
            yield finding(kind, severity, message, [header.source for header in small])


def _oddities(headers: Sequence[_Header], spec: PreprocessSpec) -> Iterator[Finding]:
    grey = [header for header in headers if header.grey]
    long = [header for header in headers if header.elongation >= NOTE_ELONGATED]
    longest = max((header.elongation for header in long), default=1.0)
    visible = (spec.crop / spec.resize) ** 2 / longest
    for kind, odd, description in (
        (
            "elongated",
            long,
            f"sides of {NOTE_ELONGATED:g} to 1 or more: the model sees only the central square, "
            f"down to {100 * visible:.0f} % of the image",
        ),
        (
            "turned",
            [header for header in headers if header.turned],
            "an EXIF orientation, by which they are turned",
        ),
        ("greyscale", grey if len(grey) < len(headers) else [], "no colour; the others do"),
        (
            "animated",
            [header for header in headers if header.animated],
            "several frames, of which only the first is used",
        ),
    ):
        if odd:
            message = f"{len(odd)} of {len(headers)} images have {description}"
            yield finding(kind, "note", message, [header.source for header in odd])
