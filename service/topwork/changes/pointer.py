"""Rollback of the serving pointer, and pins against the deletion of revisions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog

from topwork.bundle.draft import not_ready
from topwork.bundle.manifest import check_may_serve
from topwork.bundle.store import Repository
from topwork.errors import NotReady, Stale, Unavailable

log = structlog.get_logger(__name__)


def roll_back(
    repository: Repository, model: str, revision: int, *, expected: int, validate_only: bool
) -> None:
    """Make ``revision`` serve at once; 0 is the previous serving revision.

    ``expected`` is the only revision that may be serving now; 0: any. Raises NotFound, NotReady if
    the revision was rejected, there is no previous one or none serves, Stale, and Unavailable if
    the pointer cannot be written.
    """
    _check_serves(repository, model)
    state = repository.serving_state(model)
    if expected not in {0, state.revision}:
        raise Stale(f"model {model!r} serves revision {state.revision}, not {expected}")
    if not revision:
        before = [move.previous for move in state.moves if move.revision == state.revision]
        if not before or not before[-1]:
            raise NotReady(
                f"model {model!r} served no revision before {state.revision}",
                reason="NO_EARLIER_REVISION",
            )
        revision = before[-1]
    check_may_serve(repository.manifest(model, revision))
    if validate_only:
        return
    # ``parent`` refuses to replace a revision that came to serve since the caller looked.
    with _writing(model):
        serving = repository.set_serving(model, revision, why="rollback", parent=state.revision)
    if serving != revision:
        raise Stale(f"model {model!r} serves revision {serving} by now, not {state.revision}")
    log.info("rolled back", model=model, revision=revision, previous=state.revision)


def pin(
    repository: Repository, model: str, revision: int, *, pinned: bool, validate_only: bool
) -> None:
    """Pin a revision against deletion, or unpin it.

    Raises NotFound, NotReady if no revision serves, Unavailable.
    """
    _check_serves(repository, model)
    repository.manifest(model, revision)
    if not validate_only:
        with _writing(model):
            repository.pin(model, revision, pinned=pinned)
        log.info("pinned" if pinned else "unpinned", model=model, revision=revision)


def _check_serves(repository: Repository, model: str) -> None:
    if repository.is_draft(model):
        raise not_ready(repository.draft(model))


@contextlib.contextmanager
def _writing(model: str) -> Iterator[None]:
    """Convert the errors of a full or read-only disk to Unavailable."""
    try:
        yield
    except OSError as error:
        text = f"serving.json of model {model!r} cannot be written: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
