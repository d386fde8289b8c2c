"""Request fields as text: parameters of paths and queries, and fields of forms."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from topwork.errors import InvalidInput

_BOOLEANS = {"true": True, "false": False}
_AS_TEXT = "google.protobuf."
"""Package of the messages that JSON writes as a text or number."""


class Fields:
    """Collector of fields as a JSON object for ``json_mapping.merge``.

    Names are paths, such as ``options.gate.maxConflicts``, in either spelling of the JSON mapping.
    With ``base``, such as ``config``, a name that the request lacks is looked up in that field.
    """

    def __init__(self, request: Descriptor, base: str = "") -> None:
        self.tree: dict[str, Any] = {}
        self._request = request
        self._base = base

    def add(self, name: str, value: str) -> None:
        """Add a field. Raises InvalidInput for an unknown name, or a second value of one field."""
        path = _resolve(self._request, name)
        if path is None and self._base:
            path = _resolve(self._request, f"{self._base}.{name}")
        if path is None:
            raise InvalidInput(
                f"there is no field {name[:80]!r}; there are {', '.join(self._known())}",
                field=name[:80],
            )
        *outer, last = path
        node = self.tree
        for field in outer:
            node = node.setdefault(field.json_name, {})
        converted = _value(last, name, value)
        if is_repeated(last):
            node.setdefault(last.json_name, []).append(converted)
        elif last.json_name in node:
            raise InvalidInput(f"field {name[:80]!r} is given twice", field=name[:80])
        else:
            node[last.json_name] = converted

    def _known(self) -> list[str]:
        described: Any = self._request  # protobuf's types of descriptors are not one
        if self._base:
            described = described.fields_by_name[self._base].message_type
        return [field.json_name for field in described.fields]


def is_repeated(field: FieldDescriptor) -> bool:
    """Return True for repeated fields. ``label`` is deprecated where ``is_repeated`` exists."""
    described: Any = field  # the types are those of a later protobuf
    known: bool | None = getattr(described, "is_repeated", None)
    return bool(described.label == described.LABEL_REPEATED) if known is None else known


def _resolve(message: Descriptor | None, name: str) -> list[FieldDescriptor] | None:
    """Return the fields along a path, None if there are none."""
    path: list[FieldDescriptor] = []
    for part in name.split("."):
        if message is None or (path and is_repeated(path[-1])):
            return None
        field = message.fields_by_name.get(part) or message.fields_by_camelcase_name.get(part)
        if field is None:
            return None
        path.append(field)
        message = field.message_type
    last = path[-1]
    is_text = last.message_type is None or last.message_type.full_name.startswith(_AS_TEXT)
    return path if is_text else None


def _value(field: FieldDescriptor, name: str, value: str) -> str | bool:
    if field.type != FieldDescriptor.TYPE_BOOL:
        return value
    if value not in _BOOLEANS:
        raise InvalidInput(f"{name[:80]} is {value[:80]!r}; it must be true or false", field=name)
    return _BOOLEANS[value]
