"""Conversion of single fields: resource names, numbers, durations, times."""

from __future__ import annotations

import re
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from topwork.bundle.evaluation_sets import check_name
from topwork.bundle.names import check_model
from topwork.changes.intake import normalise_request_id
from topwork.errors import InvalidInput

_REVISION = re.compile("[1-9][0-9]{0,17}")
_DIGEST = re.compile("[0-9a-fA-F]{64}")

LONGEST_NAME = 200
"""Most characters of a resource name. Names that the server makes are shorter."""


def resource_id(name: str, *, collection: str, field: str) -> str:
    """Return ``x`` of ``<collection>/x``. Raises InvalidInput if ``name`` has another form."""
    prefix, slash, identifier = name[: LONGEST_NAME + 1].partition("/")
    good = prefix == collection and slash and identifier and "/" not in identifier
    if not good or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, {collection}/{{id}}, of at most "
            f"{LONGEST_NAME} visible characters",
            field=field,
            reason="RESOURCE_NAME_INVALID",
        )
    return identifier


def model_id(name: str, *, field: str) -> str:
    """Return the id in a model's resource name. Raises InvalidInput."""
    return resource_id(name, collection="models", field=field)


def new_model_id(name: str, *, field: str) -> str:
    """Return the id in a new model's resource name. Raises InvalidInput, also for the id."""
    return check_model(model_id(name, field=field), field=field)


def request_id(given: str) -> str:
    """Return an idempotency key in lower case; empty if there is none. Raises InvalidInput."""
    return normalise_request_id(given, field="request_id") if given else ""


def example_ids(name: str, *, collection: str = "examples") -> tuple[str, str]:
    """Return model and digest of the resource name of an example, or of one in ``collection``.

    Raises InvalidInput.
    """
    model, _, digest = name[: LONGEST_NAME + 1].partition(f"/{collection}/")
    if not _DIGEST.fullmatch(digest):
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, models/{{model}}/{collection}/{{digest}}, "
            "with a digest of 64 hexadecimal digits",
            field="name",
            reason="RESOURCE_NAME_INVALID",
        )
    return model_id(model, field="name"), digest.lower()


def evaluation_set_ids(name: str, *, form: str = "") -> tuple[str, str]:
    """Return model and set of an evaluation set's resource name. Raises InvalidInput."""
    model, _, stored = name[: LONGEST_NAME + 1].partition("/evaluationSets/")
    if not stored or "/" in stored or not name.isprintable():
        form = form or "models/{model}/evaluationSets/{evaluation_set}"
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, {form}",
            field="name",
            reason="RESOURCE_NAME_INVALID",
        )
    return model_id(model, field="name"), check_name(stored, field="name")


def evaluation_ids(name: str) -> tuple[str, str, int]:
    """Return model, set and revision of a result's resource name. Raises InvalidInput."""
    stored, _, revision = name[: LONGEST_NAME + 1].partition("/evaluations/")
    form = "models/{model}/evaluationSets/{evaluation_set}/evaluations/{revision}"
    valid = _REVISION.fullmatch(revision)
    model, found = evaluation_set_ids(stored if valid else name, form=form)
    return model, found, int(revision)


def report_ids(name: str) -> tuple[str, int]:
    """Return model and revision of a report's resource name. Raises InvalidInput."""
    model, _, rest = name[: LONGEST_NAME + 1].partition("/revisions/")
    revision, _, report = rest.partition("/")
    if not _REVISION.fullmatch(revision) or report != "report":
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, "
            "models/{model}/revisions/{revision}/report",
            field="name",
            reason="RESOURCE_NAME_INVALID",
        )
    return model_id(model, field="name"), int(revision)


def evaluation_set_name(model: str, name: str) -> str:
    """Return the resource name of an evaluation set."""
    return f"models/{model}/evaluationSets/{name}"


def digest(given: str, *, field: str) -> str:
    """Return an image digest in lower case. Raises InvalidInput."""
    if not _DIGEST.fullmatch(given):
        raise InvalidInput(
            f"{given[:80]!r} is not an image digest, 64 hexadecimal digits", field=field
        )
    return given.lower()


def operation_id(name: str) -> str:
    """Return the id in an operation's resource name. Raises InvalidInput."""
    return resource_id(name, collection="operations", field="name")


def number(given: int, *, field: str) -> int:
    """Return a revision number, or 0 for none. Raises InvalidInput if it is negative."""
    if given < 0:
        raise InvalidInput(f"{field} is {given}; it must not be negative", field=field)
    return given


def seconds(given: Duration, *, field: str) -> float:
    """Return a duration in seconds. Raises InvalidInput if it is negative."""
    found = float(given.ToNanoseconds() / 1e9)
    if found < 0:
        raise InvalidInput(f"{field} is {found:g} s; it must not be negative", field=field)
    return found


def revision_name(model: str, revision: int) -> str:
    """Return the resource name of a revision."""
    return f"models/{model}/revisions/{revision}"


def operation_name(identifier: str) -> str:
    """Return the resource name of an operation, or an empty string for none."""
    return f"operations/{identifier}" if identifier else ""


def duration(seconds: float) -> Duration:
    """Return seconds as a message; negative ones become 0."""
    message = Duration()
    message.FromNanoseconds(max(0, round(seconds * 1e9)))
    return message


def timestamp(moment: datetime) -> Timestamp:
    """Return a moment as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message
