"""Thumbnails as half blocks, and texts."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from support.pictures import encode

from topwork.cli.previews import COLUMNS, picture, shown, shows_colours
from topwork.terminal import Console


def jpeg(colour: tuple[int, int, int], side: int = 64) -> bytes:
    """Return a plain picture."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, "JPEG", quality=95)
    return content.getvalue()


def test_picture_has_two_pixels_per_character() -> None:
    """The colours are those of the thumbnail."""
    text = picture(jpeg((255, 0, 0)))
    lines = text.plain.split("\n")
    assert lines == ["▀" * COLUMNS] * (COLUMNS // 2)
    assert str(text.spans[0].style) == "#fe0000 on #fe0000"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", "(no preview)"),
        (b"no jpeg", "(no preview)"),
        (jpeg((0, 0, 0))[:100], "(no preview)"),
        (encode(Image.new("RGB", (64, 64))), "(no preview)"),  # a PNG
        (jpeg((0, 0, 0), 300), "(preview too large)"),
    ],
)
def test_preview_that_cannot_be_shown_is_a_text(content: bytes, shown: str) -> None:
    """A server may send anything."""
    assert picture(content).plain == shown


def test_thumbnails_need_a_terminal_with_colours() -> None:
    """Not in a pipe, and not with 16 colours."""
    assert not shows_colours(Console(file=io.StringIO()))
    assert not shows_colours(Console(force_terminal=True, color_system="standard"))
    assert shows_colours(Console(force_terminal=True, color_system="truecolor"))


def test_text_is_shown_as_text() -> None:
    """Control characters are escaped, and other kinds than texts and images have no preview."""
    assert shown("text", "Grüße \x1b[31m".encode()).plain == "Grüße \\u001b[31m"
    assert shown("text", b"").plain == shown("embedding", b"").plain == "(no preview)"
    assert shown("image", jpeg((0, 0, 0))).plain.startswith("▀")
