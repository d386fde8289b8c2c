"""Previews on a terminal: thumbnails, two pixels per character (half blocks), and texts."""

from __future__ import annotations

import io

from PIL import Image
from rich.text import Text

from topwork import Client
from topwork.printable import printable
from topwork.terminal import Console

COLUMNS = 24
"""Raising it makes thumbnails larger: characters per line."""

MOST_PIXELS = 256 * 256
"""Raising it decodes larger previews; those of Topwork have 64 x 64 pixels."""


def kind_to_show(client: Client, model: str, console: Console) -> str:
    """Return the kind of a model's inputs if the console can show their previews, else nothing."""
    kind = client.model(model).input_kind
    return kind if kind == "text" or (kind == "image" and shows_colours(console)) else ""


def shown(kind: str, content: bytes) -> Text:
    """Return the preview of an input of a kind."""
    if kind == "text" and content:
        return Text(printable(content.decode(errors="replace")))
    return picture(content)


def shows_colours(console: Console) -> bool:
    """Return True if the console is a terminal with 256 colours or more."""
    return console.is_terminal and console.color_system in {"256", "truecolor"}


def picture(jpeg: bytes) -> Text:
    """Return a thumbnail of COLUMNS characters a line; a text if it cannot be shown."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                return Text("(preview too large)")
            small = image.convert("RGB").resize((COLUMNS, COLUMNS), Image.Resampling.BOX)
    except Exception:  # Pillow raises many classes on damaged files
        return Text("(no preview)")
    pixels = small.tobytes()
    text = Text()
    for line in range(0, COLUMNS, 2):
        for column in range(COLUMNS):
            above, below = (
                "#" + pixels[3 * place : 3 * place + 3].hex()
                for place in (line * COLUMNS + column, (line + 1) * COLUMNS + column)
            )
            text.append("▀", style=f"{above} on {below}")
        text.append("\n" if line + 2 < COLUMNS else "")
    return text
