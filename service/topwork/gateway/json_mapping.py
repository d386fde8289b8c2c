"""Protobuf's JSON mapping: strict parser of requests, writer of responses."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from topwork.errors import InvalidInput, TopworkError
from topwork.v1 import change_pb2, revision_pb2

KNOWN_ANYS = (change_pb2, error_details_pb2, revision_pb2)
"""Modules whose messages an Any may contain; their import registers them."""


def parse(content: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises InvalidInput with the position of the error.

    Names that an object has twice, NaN and infinite numbers are refused.
    """
    try:
        value = json.loads(content, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _invalid(
            f"{error.msg} at line {error.lineno}, column {error.colno} (byte {error.pos})"
        ) from error
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise _invalid("it is nested too deeply") from error
    except ValueError as error:  # from the hooks, and integers with thousands of digits
        raise _invalid(str(error)) from error
    if not isinstance(value, dict):
        raise _invalid("it must be an object, {...}")
    return value


def merge(tree: dict[str, Any], message: Message) -> None:
    """Set fields of ``message`` from a JSON object. Raises InvalidInput."""
    try:
        json_format.ParseDict(tree, message)
    except RecursionError as error:
        raise _invalid("it is nested too deeply") from error
    except (json_format.ParseError, ValueError, TypeError, AttributeError, KeyError) as error:
        # json_format documents ParseError alone, and raises the others for some types.
        raise InvalidInput(
            f"the request does not fit {message.DESCRIPTOR.full_name}: {error}", field="body"
        ) from error


def to_json(message: Message) -> bytes:
    """Return a message as compact JSON; fields without a value are written with their default.

    Raises TopworkError if an Any has a type that this process does not know.
    """
    try:
        tree = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    except (TypeError, json_format.SerializeToJsonError) as error:
        raise TopworkError(f"the answer cannot be written as JSON: {error}") from error
    return dump(tree)


def dump(tree: Any) -> bytes:
    """Return a tree as compact JSON."""
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice[:80]!r} twice")
    return made


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _invalid(why: str) -> InvalidInput:
    return InvalidInput(f"the body is not valid JSON: {why}", field="body", reason="INVALID_JSON")
