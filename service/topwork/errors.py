"""The errors that Topwork raises, named for the caller's next step.

    TopworkError
    ├── InvalidInput          the request is wrong: change it (``field`` names what is)
    │   └── ImageError        one image cannot be read; that image's error, nobody else's
    ├── Unauthenticated       nobody knows who calls: send a token, or another certificate
    ├── Forbidden             who calls may not do this: ask who runs the server
    ├── NotFound              no such model, revision or operation (``resource`` names it)
    ├── AlreadyExists         a label, or another request under this id (``resource`` names it)
    ├── NotReady              the state forbids it now, such as too few usable images
    ├── Stale                 the model is not what the caller took it for: read it, then call again
    ├── Overloaded            try again after ``retry_after`` seconds
    ├── QuotaExceeded         what was granted is used up: give something back, or ask an operator
    ├── DeadlinePassed        the caller's budget was spent before the answer was there
    ├── Unavailable           this process is starting or stopping: try another, or later
    └── Corrupt               stored data fails its checksum or its schema: an operator must look

``topwork.wire.status`` holds the one table from these to gRPC codes.
"""

from __future__ import annotations


class TopworkError(Exception):
    """Base of all expected errors; ``str(error)`` is fit for the client and has the wrong value.

    ``reason`` is the stable UPPER_SNAKE_CASE identifier that clients may switch on.
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
    """One image cannot be read."""

    reason = "IMAGE_UNREADABLE"

    def __init__(self, message: str, *, field: str = "image", reason: str | None = None) -> None:
        super().__init__(message, field=field, reason=reason)


class Unauthenticated(TopworkError):
    """There are no credentials, or none that are known."""

    reason = "CREDENTIALS_MISSING"


class Forbidden(TopworkError):
    """The caller's role is too low, for anything or for this model."""

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
    """There is no such model, revision or operation."""

    reason = "NOT_FOUND"


class AlreadyExists(_AboutResource):
    """The label exists, or the request id was used for something else."""

    reason = "ALREADY_EXISTS"


class NotReady(TopworkError):
    """The current state forbids it: too few usable images, no serving revision, cancelled."""

    reason = "FAILED_PRECONDITION"


class Stale(TopworkError):
    """Another revision serves than the caller expected."""

    reason = "REVISION_CHANGED"


class Overloaded(TopworkError):
    """There is no room, or no time; try again after ``retry_after`` seconds."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after: float, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class QuotaExceeded(TopworkError):
    """What ``subject`` was granted is used up; waiting alone does not help."""

    reason = "QUOTA_EXCEEDED"

    def __init__(self, message: str, *, subject: str, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.subject = subject


class DeadlinePassed(TopworkError):
    """The caller's time was spent before the answer was there."""

    reason = "DEADLINE_PASSED"


class Unavailable(TopworkError):
    """This process is starting or stopping."""

    reason = "UNAVAILABLE"


class Corrupt(TopworkError):
    """Stored data fails its checksum or its schema; nothing was loaded from it."""

    reason = "DATA_LOSS"
