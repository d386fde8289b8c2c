"""Stored documents: JSON encoding, and decoding by types that msgspec has examined at import.

msgspec examines a type when it is first decoded. Two threads that do so at once read memory that is
not initialised yet (SIGSEGV, seen in msgspec 0.22). So this module alone decodes, and only types
that the decorator ``document`` has registered while their modules were imported.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from topwork.errors import Corrupt

T = TypeVar("T")

_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}


def document(kind: type[T]) -> type[T]:
    """Register a class, a dataclass or msgspec.Struct, as one that is stored as a document."""
    _DECODERS[kind] = msgspec.json.Decoder(kind)
    return kind


def registered() -> frozenset[type]:
    """Return all classes that the modules imported so far have registered."""
    return frozenset(_DECODERS)


def to_json(value: object) -> bytes:
    """Return a document as indented JSON with keys in field order."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def from_json(content: bytes, kind: type[T], *, name: str) -> T:
    """Return the ``kind`` that ``to_json`` wrote. Raises Corrupt, with ``name``, if it is none."""
    decoder: msgspec.json.Decoder[T] = _DECODERS[kind]
    try:
        return decoder.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{name} cannot be used: {error}") from error


def to_data(value: object) -> Any:
    """Return a document as lists, dicts, text and numbers, for who makes JSON of it."""
    return msgspec.to_builtins(value)


def from_data(data: object, kind: type[T]) -> T:
    """Return the ``kind`` that ``to_data`` gave. Raises Corrupt if it is none."""
    _check_registered(kind)
    try:
        return msgspec.convert(data, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Corrupt(f"the stored {kind.__name__} cannot be used: {error}") from error


def from_toml(content: bytes, kind: type[T]) -> T:
    """Return the ``kind`` that a TOML file says. Raises ValueError."""
    _check_registered(kind)
    return msgspec.toml.decode(content, type=kind)


def _check_registered(kind: type) -> None:
    assert kind in _DECODERS, f"{kind.__name__} has no decorator @document"
