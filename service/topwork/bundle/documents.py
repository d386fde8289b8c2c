"""JSON encoding of stored documents, and decoding with decoders that are built at import.

msgspec inspects a type when it first decodes it. Two threads that do so at once read uninitialised
memory (SIGSEGV, seen in msgspec 0.22). Therefore only this module decodes, and only types that the
decorator ``document`` registered while their modules were imported.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from topwork.errors import Corrupt
from topwork.inputs.specs import decode

T = TypeVar("T")

_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}


def document(kind: type[T]) -> type[T]:
    """Register a dataclass or msgspec.Struct as the type of a stored document."""
    _DECODERS[kind] = msgspec.json.Decoder(kind, dec_hook=decode)
    return kind


def registered() -> frozenset[type]:
    """Return all document types of the modules that are imported so far."""
    return frozenset(_DECODERS)


def to_json(value: object) -> bytes:
    """Return a document as indented JSON with keys in field order."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def from_json(content: bytes, kind: type[T], *, name: str) -> T:
    """Decode JSON as a ``kind``. Raises Corrupt, naming the file ``name``, if it is invalid."""
    decoder: msgspec.json.Decoder[T] = _DECODERS[kind]
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{name} cannot be used: {error}") from error


def to_data(value: object) -> Any:
    """Return a document as lists, dicts, strings and numbers that JSON can hold."""
    return msgspec.to_builtins(value)


def from_data(data: object, kind: type[T]) -> T:
    """Return the ``kind`` that ``to_data`` converted. Raises Corrupt if the data is not valid."""
    _check_registered(kind)
    try:
        return msgspec.convert(data, kind, dec_hook=decode)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Corrupt(f"the stored {kind.__name__} cannot be used: {error}") from error


def from_toml(content: bytes, kind: type[T]) -> T:
    """Decode a TOML file as a ``kind``. Raises ValueError if it is not valid."""
    _check_registered(kind)
    return msgspec.toml.decode(content, type=kind)


def _check_registered(kind: type) -> None:
    assert kind in _DECODERS, f"{kind.__name__} has no decorator @document"
