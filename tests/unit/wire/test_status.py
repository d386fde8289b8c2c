"""google.rpc.Status of errors: a complete table of codes, and details for the client."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from topwork import errors
from topwork.wire import status as statuses

EXAMPLES: dict[str, errors.TopworkError] = {
    "INTERNAL": errors.TopworkError("something"),
    "INVALID_ARGUMENT": errors.InvalidInput("top_k is -1", field="top_k"),
    "UNAUTHENTICATED": errors.Unauthenticated("send a token"),
    "PERMISSION_DENIED": errors.Forbidden("'line-3' is not 'train' of any model"),
    "NOT_FOUND": errors.NotFound("there is no model", kind="model", resource="models/x"),
    "ALREADY_EXISTS": errors.AlreadyExists("the label is there", kind="label", resource="roses"),
    "FAILED_PRECONDITION": errors.NotReady("too few", reason="TOO_FEW_IMAGES"),
    "ABORTED": errors.Stale("model 'x' serves revision 3, not 2"),
    "RESOURCE_EXHAUSTED": errors.Overloaded("512 images are queued", retry_after=1.25),
    "DEADLINE_EXCEEDED": errors.DeadlinePassed("3 images were not classified"),
    "UNAVAILABLE": errors.Unavailable("stopping"),
    "DATA_LOSS": errors.Corrupt("head.onnx was changed"),
}
"""An error of each code."""

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TopworkError) and not kind.__name__.startswith("_")
]


def unpacked(status: status_pb2.Status, kind: type[Any]) -> list[Any]:
    """Return the details of a message type."""
    details = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            details.append(message)
    return details


def test_every_error_class_has_a_code() -> None:
    """Only errors of images and QuotaExceeded share their code with another class."""
    shared: set[type[errors.TopworkError]] = {
        errors.ImageError,
        errors.ImageCrash,
        errors.QuotaExceeded,
    }
    assert {type(error) for error in EXAMPLES.values()} == set(KINDS) - shared
    assert set(statuses.CODES) == set(KINDS) - {errors.ImageError}
    assert len(set(statuses.CODES.values())) == len(statuses.CODES) - 2


def test_image_that_ended_processes_is_internal() -> None:
    """Its status names the image and has a reason of its own."""
    status = statuses.from_error(errors.ImageCrash("2 processes ended", field="images[3]"))
    assert status.code == code_pb2.INTERNAL
    assert statuses.reason(status) == "ENCODER_DIED"
    (request,) = unpacked(status, error_details_pb2.BadRequest)
    assert request.field_violations[0].field == "images[3]"


@pytest.mark.parametrize("code", EXAMPLES)
def test_status_has_code_message_and_reason(code: str) -> None:
    """Every error becomes a status with its code, its message and an ErrorInfo."""
    error = EXAMPLES[code]
    status = statuses.from_error(error)
    assert code_pb2.Code.Name(status.code) == code
    assert status.message == str(error)
    (info,) = unpacked(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, "topwork")


def test_quota_exceeded_names_its_subject() -> None:
    """QuotaExceeded is RESOURCE_EXHAUSTED with a QuotaFailure and without a retry delay."""
    status = statuses.from_error(errors.QuotaExceeded("too many bytes", subject="models/x"))
    (failure,) = unpacked(status, error_details_pb2.QuotaFailure)
    assert code_pb2.Code.Name(status.code) == "RESOURCE_EXHAUSTED"
    assert [(violation.subject, violation.description) for violation in failure.violations] == [
        ("models/x", "too many bytes")
    ]
    assert statuses.retry_after(status) == 0.0


def test_invalid_input_names_its_field() -> None:
    """A bad image is INVALID_ARGUMENT with a BadRequest that names the field."""
    status = statuses.from_error(errors.ImageError("cut off", field="images[3]"))
    (bad,) = unpacked(status, error_details_pb2.BadRequest)
    assert code_pb2.Code.Name(status.code) == "INVALID_ARGUMENT"
    assert [(violation.field, violation.description) for violation in bad.field_violations] == [
        ("images[3]", "cut off")
    ]


@pytest.mark.parametrize(
    ("code", "kind", "name"),
    [
        ("NOT_FOUND", "topwork.v1/model", "models/x"),
        ("ALREADY_EXISTS", "topwork.v1/label", "roses"),
    ],
)
def test_not_found_and_already_exists_name_the_resource(code: str, kind: str, name: str) -> None:
    """The ResourceInfo has the type and the name of the missing or existing resource."""
    (info,) = unpacked(statuses.from_error(EXAMPLES[code]), error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == (kind, name)


def test_overloaded_has_a_retry_delay() -> None:
    """The client reads the delay of Overloaded from its RetryInfo; other errors have 0."""
    status = statuses.from_error(EXAMPLES["RESOURCE_EXHAUSTED"])
    assert len(unpacked(status, error_details_pb2.RetryInfo)) == 1
    assert statuses.retry_after(status) == 1.25
    assert statuses.retry_after(statuses.from_error(EXAMPLES["UNAVAILABLE"])) == 0


@pytest.mark.parametrize("code", EXAMPLES)
def test_status_has_only_the_details_of_its_error(code: str) -> None:
    """Beside ErrorInfo there is at most the one detail of the error's class."""
    expected = {
        "INVALID_ARGUMENT": ["BadRequest"],
        "NOT_FOUND": ["ResourceInfo"],
        "ALREADY_EXISTS": ["ResourceInfo"],
        "RESOURCE_EXHAUSTED": ["RetryInfo"],
    }
    status = statuses.from_error(EXAMPLES[code])
    names = [detail.type_url.rpartition(".")[2] for detail in status.details]
    assert names == ["ErrorInfo", *expected.get(code, [])]


def test_subclass_has_the_code_of_its_base() -> None:
    """A new subclass of an error in the table has its code, not INTERNAL."""

    class NewError(errors.NotReady):
        pass

    assert statuses.from_error(NewError("new")).code == code_pb2.FAILED_PRECONDITION


@pytest.mark.parametrize("kind", KINDS)
def test_stored_error_has_the_code_of_its_class(kind: type[errors.TopworkError]) -> None:
    """An operation that failed has the same code as a call that failed with that error."""
    status = statuses.from_stored(kind.__name__, "so", reason="WHY")
    codes = [statuses.CODES[base] for base in kind.__mro__ if base in statuses.CODES]
    assert (status.code, status.message, statuses.reason(status)) == (codes[0], "so", "WHY")


@pytest.mark.parametrize(
    ("kind", "code"),
    [("Cancelled", "CANCELLED"), ("Internal", "INTERNAL"), ("OfANewerVersion", "UNKNOWN")],
)
def test_stored_error_outside_the_table_has_a_code(kind: str, code: str) -> None:
    """Cancelled and unexpected errors have their codes; a class of a newer version is UNKNOWN."""
    status = statuses.from_stored(kind, "so", reason="WHY")
    assert code_pb2.Code.Name(status.code) == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("DUPLICATE", "ALREADY_EXISTS"),
        ("IMAGE_UNREADABLE", "INVALID_ARGUMENT"),
        ("IMAGE_TOO_LARGE", "INVALID_ARGUMENT"),
    ],
)
def test_skipped_image_has_the_code_of_its_reason(reason: str, code: str) -> None:
    """A duplicate is ALREADY_EXISTS, any other skipped image INVALID_ARGUMENT."""
    status = statuses.from_skipped(reason, "why")
    assert (code_pb2.Code.Name(status.code), statuses.reason(status)) == (code, reason)


def test_internal_status_hides_the_cause() -> None:
    """The status of an unexpected error has a fixed message and a reason."""
    status = statuses.internal()
    assert code_pb2.Code.Name(status.code) == "INTERNAL"
    assert status.message == "internal error; see the server's log"
    assert statuses.reason(status) == "INTERNAL"


def test_status_without_details_has_no_reason() -> None:
    """A status that gRPC itself made has neither reason nor delay."""
    bare = status_pb2.Status(code=14, message="Socket closed")
    assert (statuses.reason(bare), statuses.retry_after(bare)) == ("", 0.0)
