"""Generator of the gateway's OpenAPI description from the descriptors and their comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from reference import (
    ENUM_VALUES,
    FILE_ENUMS,
    FILE_MESSAGES,
    FILE_SERVICES,
    MESSAGE_ENUMS,
    MESSAGE_FIELDS,
    MESSAGE_MESSAGES,
    SERVICE_METHODS,
    Comments,
    Path,
    comments_of,
)

from topwork.gateway.templates import OTHER_RULES, Template, parse

Tree = dict[str, Any]

SERVICES = (
    "topwork.v1.ClassifierService",
    "topwork.v1.ModelService",
    "topwork.v1.ReviewService",
    "google.longrunning.Operations",
)

_Field = FieldDescriptorProto
_SCALARS: dict[int, Tree] = {
    _Field.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _Field.TYPE_FLOAT: {"type": "number", "format": "float"},
    _Field.TYPE_INT64: {"type": "string", "format": "int64"},
    _Field.TYPE_UINT64: {"type": "string", "format": "uint64"},
    _Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    _Field.TYPE_UINT32: {"type": "integer", "format": "uint32"},
    _Field.TYPE_BOOL: {"type": "boolean"},
    _Field.TYPE_STRING: {"type": "string"},
    _Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_ANY: Tree = {
    "type": "object",
    "properties": {"@type": {"type": "string"}},
    "additionalProperties": True,
}
_WELL_KNOWN: dict[str, Tree] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "description": 'Seconds, such as "1.5s".'},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Any": _ANY,
}
_ERROR = {
    "description": "The error, with the HTTP code of its google.rpc.Code.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["code", "status", "message"],
                        "properties": {
                            "code": {"type": "integer", "description": "The HTTP code."},
                            "status": {"type": "string", "description": "The google.rpc.Code."},
                            "message": {"type": "string"},
                            "details": {
                                "type": "array",
                                "items": _WELL_KNOWN["google.protobuf.Any"],
                            },
                        },
                    }
                },
            }
        }
    },
}
_TIMEOUT = {
    "name": "X-Server-Timeout",
    "in": "header",
    "description": "Time limit of the request in seconds.",
    "schema": {"type": "number"},
}


class Description:
    """The OpenAPI document of a contract."""

    def __init__(self, contract: FileDescriptorSet) -> None:
        self._comments: dict[str, str] = {}
        self._messages: dict[str, DescriptorProto] = {}
        self._enums: dict[str, EnumDescriptorProto] = {}
        self._methods: list[tuple[str, str, MethodDescriptorProto]] = []
        self._schemas: dict[str, Tree] = {}
        for file in contract.file:
            self._read(file)

    def text(self) -> str:
        """Return the document as JSON."""
        paths: dict[str, Tree] = {}
        for service, name, method in self._methods:
            options = method.options
            rule = OTHER_RULES.get(f"{service}.{name}")
            if options.HasExtension(annotations_pb2.http):
                rule = options.Extensions[annotations_pb2.http]
            if rule is None:
                continue
            verb = rule.WhichOneof("pattern")
            template = parse(getattr(rule, verb))
            paths.setdefault(template.path, {})[verb] = self._operation(
                service, method, template, has_body=bool(rule.body)
            )
        document = {
            "openapi": "3.1.0",
            "info": {
                "title": "Topwork",
                "version": "v1",
                "description": "Generated from proto/; never edited. Field names may also be "
                "written as in the proto, such as `top_k`.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{}, {"bearer": []}],
            "paths": paths,
            "components": {
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
                "schemas": dict(sorted(self._schemas.items())),
            },
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    def _read(self, file: FileDescriptorProto) -> None:
        comments = comments_of(file)
        for number, service in enumerate(file.service):
            full = f"{file.package}.{service.name}"
            if full not in SERVICES:
                continue
            for index, method in enumerate(service.method):
                at = (FILE_SERVICES, number, SERVICE_METHODS, index)
                self._comments[f"{full}.{method.name}"] = comments.get(at, "")
                self._methods.append((full, method.name, method))
        for index, message in enumerate(file.message_type):
            self._read_message(message, file.package, (FILE_MESSAGES, index), comments)
        for index, enum in enumerate(file.enum_type):
            self._read_enum(enum, file.package, (FILE_ENUMS, index), comments)

    def _read_message(
        self, message: DescriptorProto, scope: str, at: Path, comments: Comments
    ) -> None:
        name = f"{scope}.{message.name}"
        self._messages[name] = message
        self._comments[name] = comments.get(at, "")
        for index, field in enumerate(message.field):
            text = comments.get((*at, MESSAGE_FIELDS, index), "")
            self._comments[f"{name}.{field.name}"] = text
        for index, nested in enumerate(message.nested_type):
            self._read_message(nested, name, (*at, MESSAGE_MESSAGES, index), comments)
        for index, enum in enumerate(message.enum_type):
            self._read_enum(enum, name, (*at, MESSAGE_ENUMS, index), comments)

    def _read_enum(
        self, enum: EnumDescriptorProto, scope: str, at: Path, comments: Comments
    ) -> None:
        name = f"{scope}.{enum.name}"
        self._enums[name] = enum
        lines = [comments.get(at, "")]
        for index, value in enumerate(enum.value):
            lines.append(f"`{value.name}`: {comments.get((*at, ENUM_VALUES, index), '')}")
        self._comments[name] = "\n".join(lines)

    def _operation(
        self, service: str, method: MethodDescriptorProto, template: Template, *, has_body: bool
    ) -> Tree:
        request = self._messages[method.input_type[1:]]
        parameters: list[Tree] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in template.parameters
        ]
        text = self._comments[f"{service}.{method.name}"]
        operation: Tree = {
            "operationId": method.name,
            "tags": [service.rpartition(".")[2]],
            "summary": re.split(r"(?<=\.)\s", _flowing(text), maxsplit=1)[0],
            "description": _flowing(text),
            "parameters": parameters,
        }
        if has_body:
            operation["requestBody"] = {"content": self._contents(method, request)}
        else:
            taken = {variable.field for variable in template.variables}
            parameters += self._query(method.input_type[1:], taken)
        parameters.append(_TIMEOUT)
        operation["responses"] = {"200": self._answer(method), "default": _ERROR}
        return operation

    def _contents(self, method: MethodDescriptorProto, request: DescriptorProto) -> Tree:
        schema = self._reference(method.input_type)
        contents: Tree = {"application/json": {"schema": schema}}
        if method.client_streaming:
            contents["application/x-ndjson"] = {"schema": schema}
        if any(field.name == "images" for field in request.field):
            binary: Tree = {"type": "string", "contentMediaType": "application/octet-stream"}
            contents["multipart/form-data"] = {
                "schema": {
                    "type": "object",
                    "description": "Files in any fields (AddClasses: in the field of their label); "
                    "before them all other fields of the request as text.",
                    "properties": {"image": {"type": "array", "items": binary}},
                    "additionalProperties": {"type": "string"},
                }
            }
            contents |= {kind: {"schema": binary} for kind in ("image/*", "audio/*")}
        return contents

    def _answer(self, method: MethodDescriptorProto) -> Tree:
        kinds = ["application/json"]
        if method.server_streaming:
            kinds = ["application/x-ndjson"]
            if not method.client_streaming:
                kinds.insert(0, "text/event-stream")
        schema = self._reference(method.output_type)
        return {
            "description": "A stream of messages." if method.server_streaming else "The answer.",
            "content": {kind: {"schema": schema} for kind in kinds},
        }

    def _query(self, message: str, taken: set[str]) -> Iterator[Tree]:
        for field in self._messages[message].field:
            if field.name not in taken:
                yield {
                    "name": field.json_name,
                    "in": "query",
                    "description": _flowing(self._comments[f"{message}.{field.name}"]),
                    "schema": self._field(field),
                }

    def _field(self, field: FieldDescriptorProto) -> Tree:
        schema = dict(_SCALARS[field.type]) if field.type in _SCALARS else {}
        if not schema:
            entry = self._messages.get(field.type_name[1:])
            if entry is not None and entry.options.map_entry:
                return {"type": "object", "additionalProperties": self._field(entry.field[1])}
            schema = self._reference(field.type_name)
        if field.label == _Field.LABEL_REPEATED:
            return {"type": "array", "items": schema}
        return schema

    def _reference(self, type_name: str) -> Tree:
        """Return a reference to a message or enum, whose schema the document then has."""
        name = type_name[1:]
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if name not in self._schemas:
            schema: Tree = {}
            self._schemas[name] = schema  # before its fields, which may refer to it
            if text := _flowing(self._comments.get(name, "")):
                schema["description"] = text
            if name in self._enums:
                schema["type"] = "string"
                schema["enum"] = [value.name for value in self._enums[name].value]
            else:
                schema["type"] = "object"
                schema["properties"] = {
                    field.json_name: self._described(f"{name}.{field.name}", field)
                    for field in self._messages[name].field
                }
        return {"$ref": f"#/components/schemas/{name}"}

    def _described(self, name: str, field: FieldDescriptorProto) -> Tree:
        text = _flowing(self._comments[name])
        return {**({"description": text} if text else {}), **self._field(field)}


def _flowing(text: str) -> str:
    """Return a comment whose lines within a paragraph are joined."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip())
