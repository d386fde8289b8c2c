"""What serves is moved by hand, and only to what may serve."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from support import stored

from topwork.bundle import files
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.store import Repository
from topwork.changes.pointer import pin, roll_back
from topwork.errors import NotFound, NotReady, Stale, Unavailable


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository whose model ``m`` has revisions 1 to 4; 3 serves."""
    return stored.repository(tmp_path)


def back(
    repository: Repository, revision: int = 0, *, expected: int = 0, validate_only: bool = False
) -> int:
    """Roll the model back and return what serves then."""
    roll_back(repository, "m", revision, expected=expected, validate_only=validate_only)
    return repository.serving("m")


def test_any_revision_may_serve(repository: Repository) -> None:
    """An earlier one, a later one, and the one that does already; each move is remembered."""
    assert [back(repository, number) for number in (1, 4, 4)] == [1, 4, 4]
    moves = repository.serving_state("m").moves
    assert [(one.previous, one.revision, one.why) for one in moves] == [
        (0, 3, "fit"),
        (3, 1, "rollback"),
        (1, 4, "rollback"),
    ]


def test_without_a_number_the_one_before_serves(repository: Repository) -> None:
    """Twice in a row is there and back again."""
    back(repository, 1)
    assert [back(repository), back(repository)] == [3, 1]


def test_before_the_first_there_is_none(repository: Repository) -> None:
    """A model that has served one revision only is NotReady."""
    with pytest.raises(NotReady, match="served no revision before 3") as caught:
        back(repository)
    assert caught.value.reason == "NO_EARLIER_REVISION"


def test_what_was_rejected_never_serves(repository: Repository) -> None:
    """A revision that its gate rejected is NotReady, also when only validated."""
    rejection = Rejection(gate=Gate(), failures=("too much was lost",))
    made = stored.publish(repository, [stored.put_shard(repository, 1)], rejection=rejection)
    for validate_only in (False, True):
        with pytest.raises(NotReady, match="too much was lost"):
            back(repository, made.revision, validate_only=validate_only)
    assert repository.serving("m") == 3


def test_another_revision_than_expected_is_stale(repository: Repository) -> None:
    """The caller's picture of the model must be right."""
    with pytest.raises(Stale, match="serves revision 3, not 2"):
        back(repository, 1, expected=2)
    assert back(repository, 1, expected=3) == 1


def test_who_moves_it_meanwhile_is_not_overruled(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that comes to serve between look and move stays: the caller has not seen it."""
    move = repository.set_serving

    def late(*arguments: object, **options: object) -> int:
        Repository(repository.root).set_serving("m", 4, why="retrain")
        return move(*arguments, **options)  # type: ignore[arg-type]  # what is given is passed on

    monkeypatch.setattr(repository, "set_serving", late)
    with pytest.raises(Stale, match="serves revision 4 by now, not 3"):
        back(repository, 1)
    assert repository.serving("m") == 4


def test_validating_changes_nothing(repository: Repository) -> None:
    """Everything is checked and nothing moves."""
    assert back(repository, 1, validate_only=True) == 3
    pin(repository, "m", 1, pinned=True, validate_only=True)
    assert repository.serving_state("m").pinned == ()
    with pytest.raises(NotFound):
        back(repository, 7, validate_only=True)
    with pytest.raises(NotFound):
        pin(repository, "m", 7, pinned=True, validate_only=True)


def test_what_is_pinned_is_kept_until_it_is_let_go(repository: Repository) -> None:
    """Pins are a set; serving does not matter to them."""
    for number in (4, 1, 4):
        pin(repository, "m", number, pinned=True, validate_only=False)
    assert repository.serving_state("m").pinned == (1, 4)
    pin(repository, "m", 1, pinned=False, validate_only=False)
    assert repository.serving_state("m").pinned == (4,)
    assert repository.serving("m") == 3


@pytest.mark.parametrize(
    "write",
    [
        lambda it: back(it, 1),
        lambda it: pin(it, "m", 1, pinned=True, validate_only=False),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing(
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Repository], object],
    number: int,
) -> None:
    """A full or read-only disk is Unavailable, says so without a path, and changes nothing."""
    before = repository.serving_state("m")

    def fail(path: Path, _content: bytes) -> None:
        raise OSError(number, "no", str(path))

    monkeypatch.setattr(files, "write_file", fail)
    with pytest.raises(Unavailable, match="cannot be written: no") as caught:
        write(repository)
    assert caught.value.reason == "STORAGE"
    assert str(repository.root) not in str(caught.value)
    assert repository.serving_state("m") == before
