"""Detection of file formats, supported or not, by signature (the first bytes)."""

from __future__ import annotations

READABLE = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF", "JPEG 2000", "PNM", "DICOM",
)  # fmt: skip
"""The supported formats."""

_PREFIXES = (
    # Shorter than in the standards, as the rest of the signature may be damaged.
    ("JPEG", b"\xff\xd8"),
    ("PNG", b"\x89PNG"),
    ("GIF", b"GIF8"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),
    ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    # Not supported from here on.
    ("JPEG XL", b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG XR", b"II\xbc"),
    ("PAM (Netpbm P7)", b"P7\n"),
    ("PFM (floating-point Netpbm)", b"PF\n", b"Pf\n"),
    ("a Photoshop document", b"8BPS"),
    ("a GIMP document", b"gimp xcf"),
    ("an icon (ICO)", b"\0\0\1\0"),
    ("OpenEXR", b"\x76\x2f\x31\x01"),
    ("Radiance HDR", b"#?RADIANCE", b"#?RGBE"),
    ("DirectDraw Surface", b"DDS "),
    ("QOI", b"qoif"),
    ("FITS", b"SIMPLE  ="),
    ("a camera's raw file (Fujifilm RAF)", b"FUJIFILMCCD-RAW"),
    ("a camera's raw file (Olympus ORF)", b"IIRO", b"IIRS", b"MMOR"),
    ("a camera's raw file (Panasonic RW2)", b"IIU\0"),
    ("PDF", b"%PDF-"),
    ("PostScript", b"%!PS"),
    ("a ZIP archive", b"PK\3\4"),
    ("a gzip file", b"\x1f\x8b"),
    ("an HDF5 file", b"\x89HDF\r\n\x1a\n"),
    ("a NumPy array", b"\x93NUMPY"),
    ("a Matroska or WebM video", b"\x1a\x45\xdf\xa3"),
    ("a Git LFS pointer, not the file that it points to", b"version https://git-lfs"),
)
_RIFF = {b"WEBP": "WEBP", b"AVI ": "an AVI video", b"WAVE": "a WAVE sound"}
_BRANDS = (
    ("AVIF", b"avif", b"avis"),
    ("HEIF", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"),
    ("a camera's raw file (Canon CR3)", b"crx "),
)
"""Major and compatible brands of ISO base media files (ISO/IEC 14496-12)."""

_MARKUP = (("SVG", b"<svg"), ("HTML", b"<html", b"<!doctype html"), ("XML", b"<?xml"))


def recognise(content: bytes) -> str | None:
    """Return the name of a file's format, in READABLE or not; None if it is unknown."""
    start = content[:256]
    if start[128:132] == b"DICM":  # after an arbitrary preamble of 128 bytes (DICOM PS3.10)
        return "DICOM"
    for name, *prefixes in _PREFIXES:
        if start.startswith(tuple(prefixes)):
            return name
    if start[:4] == b"RIFF":
        return _RIFF.get(start[8:12])
    if start[4:8] == b"ftyp":
        return _media(start)
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3] in b"\t\n\v\f\r #":
        return "PNM"
    markup = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for name, *tags in _MARKUP:
        if any(tag in markup if name == "SVG" else markup.startswith(tag) for tag in tags):
            return name
    return None


def _media(start: bytes) -> str:
    end = min(int.from_bytes(start[:4]), len(start))
    brands = {start[at : at + 4] for at in (8, *range(16, end, 4))}
    for name, *names in _BRANDS:
        if not brands.isdisjoint(names):
            return name
    return "a video (MP4, QuickTime or the like)"
