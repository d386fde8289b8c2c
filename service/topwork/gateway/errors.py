"""Errors as HTTP responses: google.rpc.Status in JSON, with the code of google.rpc.Code's table."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2
from starlette.responses import Response

from topwork.client.calls import CallFailed
from topwork.errors import TopworkError
from topwork.gateway.json_mapping import dump
from topwork.wire import status as statuses

HTTP_CODES = {
    code_pb2.OK: 200,
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
}
"""HTTP code of each google.rpc.Code, from the comments in google/rpc/code.proto."""


CODES = {
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    405: code_pb2.UNIMPLEMENTED,
    408: code_pb2.DEADLINE_EXCEEDED,
}
"""google.rpc.Code of the errors of HTTP itself; INVALID_ARGUMENT of all others."""


class HttpError(TopworkError):
    """A request that HTTP itself refuses, with a code that the table above may not have."""

    def __init__(self, code: int, message: str, *, reason: str, **headers: str) -> None:
        super().__init__(message, reason=reason)
        self.code = code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def status_of(error: TopworkError) -> status_pb2.Status:
    """Return the status of an error of this process or of the server."""
    if isinstance(error, CallFailed):
        return error.status
    status = statuses.from_error(error)
    if isinstance(error, HttpError):
        status.code = CODES.get(error.code, code_pb2.INVALID_ARGUMENT)
    return status


def to_response(error: TopworkError, *, only_text: bool = False) -> Response:
    """Return the response to a request that failed; ``only_text``: for Open Inference."""
    status = status_of(error)
    code = HTTP_CODES.get(status.code, 500)
    headers = {}
    if isinstance(error, HttpError):
        code = error.code
        headers = error.headers
    if status.code == code_pb2.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    if seconds := statuses.retry_after(status):
        headers["retry-after"] = str(math.ceil(seconds))
    content = dump({"error": status.message}) if only_text else body(status, code)
    return Response(content, code, headers, "application/json")


def body(status: status_pb2.Status, code: int) -> bytes:
    """Return the JSON of an error, as Google's APIs write it."""
    return dump({"error": tree(status, code)})


def tree(status: status_pb2.Status, code: int | None = None) -> dict[str, Any]:
    """Return a status as JSON; details of unknown types are left out."""
    known = status.code in code_pb2.Code.values()
    return {
        "code": HTTP_CODES.get(status.code, 500) if code is None else code,
        "status": code_pb2.Code.Name(status.code) if known else "UNKNOWN",
        "message": status.message,
        "details": [found for detail in status.details if (found := _detail(detail)) is not None],
    }


def _detail(detail: Any) -> Any:
    try:
        return json_format.MessageToDict(detail)
    except (TypeError, json_format.SerializeToJsonError):
        return None
