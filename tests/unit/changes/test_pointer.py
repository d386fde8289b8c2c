"""Rollback of the serving pointer, and pins of revisions."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from support import stored

from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.store import Repository
from topwork.changes.pointer import pin, roll_back
from topwork.errors import NotFound, NotReady, Stale, Unavailable
from topwork.storage import files


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository whose model ``m`` has revisions 1 to 4; 3 serves."""
    return stored.repository(tmp_path)


def rolled_back(
    repository: Repository, revision: int = 0, *, expected: int = 0, validate_only: bool = False
) -> int:
    """Roll the model back and return the serving revision."""
    roll_back(repository, "m", revision, expected=expected, validate_only=validate_only)
    return repository.serving("m")


def test_roll_back_serves_any_revision(repository: Repository) -> None:
    """It may be earlier, later, or already serving; each move is in the history."""
    assert [rolled_back(repository, number) for number in (1, 4, 4)] == [1, 4, 4]
    moves = repository.serving_state("m").moves
    assert [(move.previous, move.revision, move.why) for move in moves] == [
        (0, 3, "fit"),
        (3, 1, "rollback"),
        (1, 4, "rollback"),
    ]


def test_roll_back_without_a_number_serves_the_previous_revision(repository: Repository) -> None:
    """A second rollback returns to the first revision."""
    rolled_back(repository, 1)
    assert [rolled_back(repository), rolled_back(repository)] == [3, 1]


def test_roll_back_without_a_previous_revision_is_not_ready(repository: Repository) -> None:
    """A model that has served only one revision cannot be rolled back without a number."""
    with pytest.raises(NotReady, match="served no revision before 3") as caught:
        rolled_back(repository)
    assert caught.value.reason == "NO_EARLIER_REVISION"


def test_roll_back_to_a_rejected_revision_is_not_ready(repository: Repository) -> None:
    """A dry run is refused, too."""
    rejection = Rejection(gate=Gate(), failures=("too much was lost",))
    made = stored.publish(repository, [stored.put_shard(repository, 1)], rejection=rejection)
    for validate_only in (False, True):
        with pytest.raises(NotReady, match="too much was lost"):
            rolled_back(repository, made.revision, validate_only=validate_only)
    assert repository.serving("m") == 3


def test_roll_back_from_an_unexpected_revision_is_stale(repository: Repository) -> None:
    """The expected revision must be serving."""
    with pytest.raises(Stale, match="serves revision 3, not 2"):
        rolled_back(repository, 1, expected=2)
    assert rolled_back(repository, 1, expected=3) == 1


def test_roll_back_does_not_undo_a_concurrent_move(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that comes to serve between read and write stays: the caller has not seen it."""
    move = repository.set_serving

    def late(*arguments: object, **options: object) -> int:
        Repository(repository.root).set_serving("m", 4, why="retrain")
        return move(*arguments, **options)  # type: ignore[arg-type]  # passed on unchanged

    monkeypatch.setattr(repository, "set_serving", late)
    with pytest.raises(Stale, match="serves revision 4 by now, not 3"):
        rolled_back(repository, 1)
    assert repository.serving("m") == 4


def test_validate_only_changes_nothing(repository: Repository) -> None:
    """All checks are made, and neither the pointer nor the pins change."""
    assert rolled_back(repository, 1, validate_only=True) == 3
    pin(repository, "m", 1, pinned=True, validate_only=True)
    assert repository.serving_state("m").pinned == ()
    with pytest.raises(NotFound):
        rolled_back(repository, 7, validate_only=True)
    with pytest.raises(NotFound):
        pin(repository, "m", 7, pinned=True, validate_only=True)


def test_pin_adds_and_removes_revisions(repository: Repository) -> None:
    """Pins are a set, independent of the serving revision."""
    for number in (4, 1, 4):
        pin(repository, "m", number, pinned=True, validate_only=False)
    assert repository.serving_state("m").pinned == (1, 4)
    pin(repository, "m", 1, pinned=False, validate_only=False)
    assert repository.serving_state("m").pinned == (4,)
    assert repository.serving("m") == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda repository: rolled_back(repository, 1),
        lambda repository: pin(repository, "m", 1, pinned=True, validate_only=False),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_write_to_a_full_or_read_only_disk_is_unavailable(
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Repository], object],
    number: int,
) -> None:
    """The error has no path, and the pointer and the pins do not change."""
    before = repository.serving_state("m")

    def fail(path: Path, _content: bytes) -> None:
        raise OSError(number, "no", str(path))

    monkeypatch.setattr(files, "write_file", fail)
    with pytest.raises(Unavailable, match="cannot be written: no") as caught:
        write(repository)
    assert caught.value.reason == "STORAGE"
    assert str(repository.root) not in str(caught.value)
    assert repository.serving_state("m") == before
