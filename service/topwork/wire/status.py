"""Topwork's errors as google.rpc.Status: the one table of gRPC codes, and the error details."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from topwork import errors

DOMAIN = "topwork"
"""The domain of every ErrorInfo."""

DETAILS_KEY = "grpc-status-details-bin"
"""The trailer that carries a google.rpc.Status."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""The trailer with the delay before gRPC's own retries."""

LONGEST_TEXT = 1000
"""Raising it truncates fewer messages. gRPC drops trailers over 16 KB, with all their texts."""

CODES: dict[type[errors.TopworkError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.ImageCrash: code_pb2.INTERNAL,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.Forbidden: code_pb2.PERMISSION_DENIED,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.NotReady: code_pb2.FAILED_PRECONDITION,
    errors.Stale: code_pb2.ABORTED,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.QuotaExceeded: code_pb2.RESOURCE_EXHAUSTED,
    errors.DeadlinePassed: code_pb2.DEADLINE_EXCEEDED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.Corrupt: code_pb2.DATA_LOSS,
    errors.TopworkError: code_pb2.INTERNAL,
}
_BY_NAME = {kind.__name__: code for kind, code in CODES.items()} | {
    "ImageError": code_pb2.INVALID_ARGUMENT,
    "Cancelled": code_pb2.CANCELLED,
    "Internal": code_pb2.INTERNAL,
}


def from_error(error: errors.TopworkError) -> status_pb2.Status:
    """Return the status of an expected error, with ErrorInfo and the details of its class."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    details: list[Message] = [_error_info(error.reason)]
    if isinstance(error, errors.InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_truncated(error.field), description=_truncated(str(error))
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.NotFound | errors.AlreadyExists):
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=f"topwork.v1/{error.kind}",
                resource_name=_truncated(error.resource),
                description=_truncated(str(error)),
            )
        )
    if isinstance(error, errors.Overloaded):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.QuotaExceeded):
        exceeded = error_details_pb2.QuotaFailure.Violation(
            subject=_truncated(error.subject), description=_truncated(str(error))
        )
        details.append(error_details_pb2.QuotaFailure(violations=[exceeded]))
    return _status(code, str(error), details)


def from_stored(
    kind: str, message: str, *, reason: str, revision: int = 0, comparison: Message | None = None
) -> status_pb2.Status:
    """Return the status of a stored error; ``kind`` is the name of its class.

    ``revision`` and ``comparison`` are those of a rejected revision.
    """
    details: list[Message] = [_error_info(reason, revision=revision)]
    if comparison is not None:
        details.append(comparison)
    return _status(_BY_NAME.get(kind, code_pb2.UNKNOWN), message, details)


def from_skipped(reason: str, message: str) -> status_pb2.Status:
    """Return the status of a skipped training image."""
    exists = reason in {"DUPLICATE", "IN_EVALUATION_SET"}
    code = code_pb2.ALREADY_EXISTS if exists else code_pb2.INVALID_ARGUMENT
    return _status(code, message, [_error_info(reason)])


def internal() -> status_pb2.Status:
    """Return the status of an unexpected error: a fixed text; only the log has the cause."""
    return _status(
        code_pb2.INTERNAL, "internal error; see the server's log", [_error_info("INTERNAL")]
    )


def reason(status: status_pb2.Status) -> str:
    """Return the reason in a status's ErrorInfo; empty if it has none."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def retry_after(status: status_pb2.Status) -> float:
    """Return the seconds in a status's RetryInfo; 0 if it has none."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return 0.0


def _error_info(reason: str, *, revision: int = 0) -> error_details_pb2.ErrorInfo:
    metadata = {"revision": str(revision)} if revision else {}
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _truncated(text: str) -> str:
    """Truncate a text: gRPC would drop all trailers for a client's very long value."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


def _status(code: int, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        any_detail = Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    return status_pb2.Status(code=code, message=_truncated(message), details=packed)
