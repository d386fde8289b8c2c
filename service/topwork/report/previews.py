"""Previews of inputs on pages: a thumbnail, the beginning of a text, or a sound."""

from __future__ import annotations

import base64
from dataclasses import dataclass

MEDIA_TYPES = {"image": "image/jpeg", "audio": "audio/wav"}
"""Media types of the previews that are files, by the kind of the input."""

_NOUNS = {"image": ("image", "photo"), "audio": ("recording", "recording")}


def nouns(kind: str) -> dict[str, str]:
    """Return what a page calls an input of a kind: variables of the templates."""
    noun, photo = _NOUNS.get(kind, (kind, kind))
    return {"noun": noun, "photo": photo}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Preview of an input of a kind; the macro ``preview`` of the templates shows it."""

    kind: str
    """As in ``inputs.kinds``."""
    content: bytes
    """As ``InputKind.preview`` returned it; empty: there is none."""

    @property
    def text(self) -> str:
        """The beginning of a text; empty for other kinds."""
        return self.content.decode(errors="replace") if self.kind == "text" else ""

    @property
    def uri(self) -> str:
        """A file as a data: URI; empty if there is none."""
        media_type = MEDIA_TYPES.get(self.kind)
        if media_type is None or not self.content:
            return ""
        return f"data:{media_type};base64,{base64.b64encode(self.content).decode()}"
