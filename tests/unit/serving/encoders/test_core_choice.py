"""Choice of cores: all cores for few images, one core per image for many."""

from __future__ import annotations

import math

import pytest

from topwork.serving.encoders.core_choice import TRIAL_INTERVAL, CoreChoice


def play(choice: CoreChoice, seconds: dict[bool, float], images: int) -> list[bool]:
    """Return the choices for single images, whose runs take ``seconds``, by choice."""
    made = []
    for _ in range(images):
        made.append(choice.wide(1))
        choice.measured(made[-1], seconds[made[-1]])
    return made


@pytest.mark.parametrize(
    ("present", "seconds", "wide"),
    [
        (1, 2.2, True),
        (2, 2.2, False),
        (500, 2.2, False),
        (1, 4.1, False),
        (4, 1.0, True),
        (5, 1.0, False),
    ],
)
def test_few_images_use_all_cores(present: int, seconds: float, wide: bool) -> None:
    """Images use all cores if that is estimated to be as fast as one core each (4 s)."""
    assert CoreChoice("tiny", 4.0, seconds).wide(present) == wide


@pytest.mark.parametrize("faster", [False, True], ids=["one core", "all cores"])
def test_wrong_estimate_is_corrected(faster: bool) -> None:
    """Single images find the faster choice, whatever the first measurement was."""
    choice = CoreChoice("tiny", 0.004 if not faster else 0.0005, 0.004 if faster else 0.0005)
    seconds = {faster: 0.001, not faster: 0.002}
    play(choice, seconds, 60 * TRIAL_INTERVAL)
    last = play(choice, seconds, TRIAL_INTERVAL)
    assert last.count(faster) == TRIAL_INTERVAL - 1


def test_change_of_the_load_is_noticed() -> None:
    """When other processes take the other cores, single images move to one core."""
    choice = CoreChoice("tiny", 0.004, 0.002)
    assert play(choice, {False: 0.004, True: 0.002}, TRIAL_INTERVAL - 1) == [True] * (
        TRIAL_INTERVAL - 1
    )
    assert not play(choice, {False: 0.004, True: 0.008}, TRIAL_INTERVAL)[-1]


def test_single_slow_run_does_not_change_the_choice() -> None:
    """A run that takes a hundred times as long does not change the choice."""
    choice = CoreChoice("tiny", 0.004, 0.002)
    assert play(choice, {False: 0.004, True: 0.2}, 3) == [True, True, True]


def test_trials_are_rare() -> None:
    """One of TRIAL_INTERVAL single images uses the slower choice; of several images none does."""
    choice = CoreChoice("tiny", 1e9, 1e-9)
    made = play(choice, {False: 1e9, True: 1e-9}, 2 * TRIAL_INTERVAL)
    assert (made.count(False), made.count(True)) == (2, 2 * TRIAL_INTERVAL - 2)
    assert all(choice.wide(2) for _ in range(2 * TRIAL_INTERVAL))


def test_backbone_on_one_core_makes_no_trials() -> None:
    """A backbone without a session on all cores is never asked to use it."""
    choice = CoreChoice("tiny", 0.004, math.inf)
    assert not any(play(choice, {False: 0.004, True: 0.0}, 2 * TRIAL_INTERVAL))


def test_backbone_on_a_gpu_has_no_choice() -> None:
    """Without a measurement of either, as on a GPU, the choice stays the same."""
    choice = CoreChoice("tiny", math.inf, math.inf)
    made = [choice.wide(present) for present in (1, 2, 500) for _ in range(2 * TRIAL_INTERVAL)]
    assert len(set(made)) == 1
