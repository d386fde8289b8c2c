"""Steps of changes wait for the store of a bucket, and for nothing else."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path

import pytest
from support import tiny
from support.pictures import pictures

from topwork.bundle.store import Repository
from topwork.changes import worker
from topwork.errors import Unavailable
from topwork.inputs.image_source import ImageSource
from topwork.runtime.backend import open_session
from topwork.storage.storage import Unreachable
from topwork.training.embed import embed, stored_image


class Store:
    """A store that answers after a number of errors."""

    def __init__(self, *errors: OSError) -> None:
        self.errors = [*errors]

    def __call__(self, answer: str) -> str:
        """Return the answer, or raise the next error."""
        if self.errors:
            raise self.errors.pop(0)
        return answer


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", 0.0)


def test_step_is_repeated_while_the_store_is_away() -> None:
    """The arguments are the same, and the first result counts."""
    away = Unreachable(errno.EIO, "away")
    assert worker._patiently(Store(away, away), "done") == "done"


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that stays away is an error in the end."""
    monkeypatch.setattr(worker, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(Unreachable):
        worker._patiently(Store(Unreachable(errno.EIO, "away")), "done")


def test_other_errors_are_not_repeated() -> None:
    """A full disk does not become free by itself."""
    store = Store(OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        worker._patiently(store, "done")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "damaged sector"), Unavailable),
        (PermissionError(errno.EACCES, "no permission"), Unavailable),
        (Unreachable(errno.EIO, "away"), Unreachable),
    ],
)
def test_stored_image_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[Exception]
) -> None:
    """Unlike an unreadable file of a user, it ends the step: the class would lack an image."""
    repository = Repository(tmp_path)
    digests = [repository.put_image(photo) for photo in pictures("blue", 3)]
    read = repository.image

    def fail(digest: str) -> bytes:
        if digest == digests[1]:
            raise error
        return read(digest)

    monkeypatch.setattr(repository, "image", fail)
    sources = [
        ImageSource(name=digest, label="blue", read=partial(stored_image, repository, digest))
        for digest in digests
    ]
    session = open_session(tiny.backbone_model(), output="embedding")
    with pytest.raises(expected):
        embed(sources, session, tiny.SPEC, cores=1)
