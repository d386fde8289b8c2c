"""Tree of the errors that Topwork raises, named for the caller's next step.

    TopworkError
    ├── InvalidInput          the request is wrong: change its ``field``
    │   └── ImageError        one image is unreadable; the other images are not affected
    ├── Unauthenticated       the credentials are missing or unknown: send a token or certificate
    ├── Forbidden             the caller lacks the role: ask the operator of the server
    ├── NotFound              the ``resource`` does not exist: a model, revision, operation ...
    ├── AlreadyExists         the ``resource`` exists: a label, or another request with this id
    ├── NotReady              the state does not allow the call, such as too few usable images
    ├── Stale                 the model has changed: read it, then call again
    ├── Overloaded            the server lacks capacity: retry after ``retry_after`` seconds
    ├── QuotaExceeded         the quota of ``subject`` is used up: free some, or ask the operator
    ├── DeadlinePassed        the call did not end before its deadline
    ├── Unavailable           the process is starting or stopping: retry, or call another server
    └── Corrupt               stored data fails its checksum or schema: an operator must repair it

``topwork.wire.status`` has the table that maps them to gRPC codes.
"""

from __future__ import annotations


class TopworkError(Exception):
    """Base of all expected errors; clients see ``str(error)``, which contains the wrong value.

    ``reason`` is a stable UPPER_SNAKE_CASE identifier that clients may switch on.
    """

    reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class InvalidInput(TopworkError):
    """The request is wrong; ``field`` is the path of the wrong field, such as ``images[3]``."""

    reason = "INVALID_INPUT"

    def __init__(self, message: str, *, field: str, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.field = field


class ImageError(InvalidInput):
    """An image is unreadable."""

    reason = "IMAGE_UNREADABLE"

    def __init__(self, message: str, *, field: str = "image", reason: str | None = None) -> None:
        super().__init__(message, field=field, reason=reason)


class ImageCrash(ImageError):
    """An image was in progress in several processes that ended."""

    reason = "ENCODER_DIED"


class Unauthenticated(TopworkError):
    """The credentials are missing or unknown."""

    reason = "CREDENTIALS_MISSING"


class Forbidden(TopworkError):
    """The caller lacks the role for this call, or for this model."""

    reason = "ROLE_MISSING"


class _AboutResource(TopworkError):
    """An error about one named thing: ``resource`` is its name, ``kind`` its type (model, ...)."""

    def __init__(
        self, message: str, *, kind: str, resource: str, reason: str | None = None
    ) -> None:
        super().__init__(message, reason=reason)
        self.kind = kind
        self.resource = resource


class NotFound(_AboutResource):
    """The model, revision, label or operation does not exist."""

    reason = "NOT_FOUND"


class AlreadyExists(_AboutResource):
    """The label exists, or the request id was used for something else."""

    reason = "ALREADY_EXISTS"


class NotReady(TopworkError):
    """The current state does not allow the call: too few usable images, no serving revision."""

    reason = "FAILED_PRECONDITION"


class Stale(TopworkError):
    """Another revision serves than the caller expected."""

    reason = "REVISION_CHANGED"


class Overloaded(TopworkError):
    """The server lacks capacity or time; retry after ``retry_after`` seconds."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after: float, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class QuotaExceeded(TopworkError):
    """The quota of ``subject`` is used up; waiting does not help."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, message: str, *, subject: str, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.subject = subject


class DeadlinePassed(TopworkError):
    """The call did not end before its deadline."""

    reason = "DEADLINE_PASSED"


class Unavailable(TopworkError):
    """The process is starting or stopping."""

    reason = "UNAVAILABLE"


class Corrupt(TopworkError):
    """Stored data fails its checksum or its schema; nothing was loaded from it."""

    reason = "DATA_LOSS"
