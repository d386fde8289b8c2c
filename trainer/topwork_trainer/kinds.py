"""Words for kinds of inputs in the trainer's messages."""

from __future__ import annotations

from topwork.inputs.audio import AudioSpec
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
from topwork.inputs.text import TextSpec

NOUNS = {"image": "photo", "text": "text", "audio": "recording", "embedding": "embedding"}
"""Names of an input by the name of its kind, in the singular."""


def noun_of(kind: str) -> str:
    """Return what messages count of a kind, in the singular: ``image``, ``recording``."""
    return "recording" if kind == "audio" else kind


def size_text(spec: InputSpec) -> str:
    """Return the size of what a backbone takes: ``224`` pixels, ``256 tokens`` or ``16000 Hz``."""
    if isinstance(spec, TextSpec):
        return f"{spec.max_tokens} tokens"
    if isinstance(spec, AudioSpec):
        return f"{spec.rate} Hz"
    return str(spec.crop) if isinstance(spec, PreprocessSpec) else ""


def sizes_json(spec: InputSpec) -> dict[str, int | None]:
    """Return the size of what a backbone takes as JSON data, with null for that of other kinds."""
    return {
        "image_size": spec.crop if isinstance(spec, PreprocessSpec) else None,
        "max_tokens": spec.max_tokens if isinstance(spec, TextSpec) else None,
        "audio_rate": spec.rate if isinstance(spec, AudioSpec) else None,
    }
