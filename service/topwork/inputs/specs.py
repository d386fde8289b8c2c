"""Specs of all kinds of inputs, and their decoding: a union with the tag ``kind``."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from topwork.inputs.audio import AudioSpec
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
from topwork.inputs.text import TextSpec

IMAGE = "image"
"""Tag of a spec that has none: those of images are stored without it."""

SPECS: Mapping[str, type[InputSpec]] = {
    IMAGE: PreprocessSpec,
    "embedding": EmbeddingSpec,
    "text": TextSpec,
    "audio": AudioSpec,
}

for _spec in SPECS.values():
    # msgspec inspects a type when it first decodes it, which two threads must not do at once.
    msgspec.json.Decoder(_spec)


def spec_of(data: object) -> InputSpec:
    """Return the spec that ``data`` describes. Raises ValueError."""
    name = data.get("kind", IMAGE) if isinstance(data, dict) else IMAGE
    if not isinstance(name, str) or name not in SPECS:
        raise ValueError(f"this release does not know inputs of the kind {name!r}")
    try:
        spec: InputSpec = msgspec.convert(data, SPECS[name])
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return spec


def decode(kind: type, data: object) -> object:
    """Decode a spec, as the ``dec_hook`` of msgspec's decoders."""
    if kind is InputSpec:
        try:
            return spec_of(data)
        except ValueError as error:
            raise ValueError(f"preprocess: {error}") from None
    raise NotImplementedError(f"{kind} cannot be decoded")
