"""Tensors of the Open Inference Protocol as JSON, and Triton's extension for binary tensors.

The server gets and returns raw tensors; this module converts them where a client has JSON.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from topwork.errors import InvalidInput
from topwork.gateway.fields import is_repeated
from topwork.gateway.json_mapping import dump
from topwork.gateway.json_mapping import parse as parse_json
from topwork.inference import inference_service_pb2 as pb

HEADER_LENGTH = "inference-header-content-length"
"""Header with the length of the JSON before the binary tensors."""

TEXTS = "texts"
"""Name of the tensor whose elements are texts."""

_SIZE = "binary_data_size"
_BINARY = "binary_data"
_ALL_BINARY = "binary_data_output"
_OWN = (_SIZE, _BINARY, _ALL_BINARY)
"""Parameters of the extension, which the server does not get."""

_NAMES = {"str": "a text", "list": "a list", "dict": "an object"}

DEEPEST = 8
"""Most nested lists of ``data``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A parsed request."""

    message: pb.ModelInferRequest
    binary: dict[str, bool]
    """By name of a requested output: True if the client wants it binary."""
    all_binary: bool
    """The same for outputs that the request does not name."""


def header_length(header: str | None, length: int) -> int:
    """Return the length of the JSON in a body of ``length`` bytes. Raises InvalidInput."""
    if header is None:
        return length
    if not (header.isascii() and header.isdecimal() and int(header[:12]) <= length):
        raise InvalidInput(
            f"{HEADER_LENGTH} is {header[:80]!r}; the body has {length} bytes", field=HEADER_LENGTH
        )
    return int(header)


def parse(body: bytes, length: int, model: str, version: str) -> Parsed:
    """Return the request whose first ``length`` bytes are JSON. Raises InvalidInput."""
    tree = parse_json(body[:length])
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    message.id = _of(str, tree.get("id", ""), "id")
    parameters = _parameters(tree, message.parameters, "parameters")
    binary = {}
    at = length
    for index, given in enumerate(_list(tree, "inputs")):
        field = f"inputs[{index}]"
        tensor = message.inputs.add()
        own = _tensor(given, tensor, field)
        tensor.datatype = _of(str, given.get("datatype"), f"{field}.datatype")
        shape = _of(list, given.get("shape"), f"{field}.shape")
        try:
            tensor.shape.extend(shape)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{field}.shape is {str(shape)[:80]}", field=field) from error
        if (size := own.get(_SIZE)) is None:
            raw = _encoded(tensor, _of(list, given.get("data"), f"{field}.data"), field)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(body) - at:
                raise InvalidInput(
                    f"{field} has {_SIZE} {str(size)[:80]}; the body has {len(body) - at} bytes "
                    "more",
                    field=field,
                )
            raw = body[at : at + size]
            at += size
        message.raw_input_contents.append(raw)
    if at != len(body):
        raise InvalidInput(f"{len(body) - at} bytes of the body are no input's", field="body")
    for index, given in enumerate(_list(tree, "outputs")):
        own = _tensor(given, output := message.outputs.add(), f"outputs[{index}]")
        binary[output.name] = bool(own.get(_BINARY, parameters.get(_ALL_BINARY, False)))
    return Parsed(
        message=message, binary=binary, all_binary=bool(parameters.get(_ALL_BINARY, False))
    )


def answer(response: pb.ModelInferResponse, parsed: Parsed) -> tuple[bytes, bytes]:
    """Return the JSON of a response, and the binary tensors after it."""
    outputs = []
    tail = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        tree: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if parsed.binary.get(output.name, parsed.all_binary):
            tree["parameters"] = {_SIZE: len(raw)}
            tail.append(raw)
        elif output.datatype == "BYTES":
            tree["data"] = [element.decode() for element in _elements(raw)]
        else:
            tree["data"] = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        outputs.append(tree)
    head = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "outputs": outputs,
    }
    if response.id:
        head["id"] = response.id
    return dump(head), b"".join(tail)


def plain(message: Any) -> dict[str, Any]:
    """Return a message as the protocol's JSON: names as in the proto, and integers as numbers."""
    return {
        field.name: _plain(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if field.message_type is None or is_repeated(field) or message.HasField(field.name)
    }


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _plain(inner, value[key]) for key in value}
    if is_repeated(field):
        return [_one(field, element) for element in value]
    return _one(field, value)


def _one(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return plain(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return field.enum_type.values_by_number[value].name
    return value


def _tensor(given: Any, tensor: Any, field: str) -> dict[str, Any]:
    """Set name and parameters of a tensor, and return the parameters that are the gateway's."""
    tree = _of(dict, given, field)
    tensor.name = _of(str, tree.get("name"), f"{field}.name")
    return _parameters(tree, tensor.parameters, f"{field}.parameters")


def _parameters(tree: dict[str, Any], target: Any, field: str) -> dict[str, Any]:
    given: dict[str, Any] = _of(dict, tree.get("parameters", {}), field)
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in given.items():
        if name in _OWN:
            continue
        if (kind := kinds.get(type(value))) is None:
            raise InvalidInput(f"{field}.{name[:80]} is no text, number or boolean", field=field)
        try:
            setattr(target[name], kind, value)
        except ValueError as error:
            raise InvalidInput(f"{field}.{name[:80]}: {error}", field=field) from error
    return given


def _encoded(tensor: Any, data: list[Any], field: str) -> bytes:
    """Return ``data``, flat or nested, as a raw tensor. Raises InvalidInput.

    Texts are strings in JSON; other BYTES are base64.
    """
    elements, datatype = list(_flat(data, field)), tensor.datatype
    is_text = tensor.name == TEXTS
    try:
        match datatype:
            case "BYTES":
                return b"".join(
                    len(content).to_bytes(4, "little") + content
                    for content in (
                        str.encode(element) if is_text else base64.b64decode(element, validate=True)
                        for element in elements
                    )
                )
            case "UINT8":
                return bytes(elements)
            case "FP32":
                return struct.pack(f"<{len(elements)}f", *elements)
    except (TypeError, ValueError, struct.error, OverflowError, binascii.Error) as error:
        why = "; images in JSON are base64" if datatype == "BYTES" and not is_text else ""
        raise InvalidInput(f"{field}.data is not {datatype}: {error}{why}", field=field) from error
    raise InvalidInput(
        f"{field}.datatype is {datatype[:80]!r}; it must be BYTES, UINT8 or FP32", field=field
    )


def _flat(data: Any, field: str, depth: int = 0) -> Iterator[Any]:
    if depth > DEEPEST:
        raise InvalidInput(f"{field}.data is nested too deeply", field=field)
    for element in data:
        if isinstance(element, list):
            yield from _flat(element, field, depth + 1)
        else:
            yield element


def _elements(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        yield raw[at + 4 : at + 4 + size]
        at += 4 + size


def _list(tree: dict[str, Any], name: str) -> list[Any]:
    found: list[Any] = _of(list, tree.get(name, []), name)
    return found


def _of(kind: type[Any], value: Any, field: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidInput(f"{field} must be {_NAMES[kind.__name__]}", field=field)
    return value
