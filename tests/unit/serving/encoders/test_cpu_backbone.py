"""CPU backbone: one core per image, or all cores for a single image."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from support import tiny

from topwork.runtime.backend import Session, open_session
from topwork.serving.encoders.backbone import Embedded
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.encoders.cpu_backbone import TRIAL_INTERVAL, CpuBackbone

MODEL = tiny.backbone_model()
INFO = tiny.backbone_info(MODEL)
PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


class FakeSession:
    """Session that embeds every image as ones after a delay, and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0
        self.error: Exception | None = None

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return ones."""
        self.runs += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return np.ones((len(batch), tiny.WIDTH), dtype=np.float32)


def embed(backbone: Any, *, present: int) -> Embedded | Exception:
    """Return the result, which is delivered exactly once."""
    delivered: list[Embedded | Exception] = []
    backbone.embed(PIXELS, delivered.append, present=present)
    (result,) = delivered
    return result


def sessions() -> tuple[FakeSession, FakeSession, CpuBackbone]:
    """Return a narrow and a wide session with their backbone."""
    narrow, wide = FakeSession(), FakeSession()
    backbone = CpuBackbone(INFO, cast("Session", narrow), cast("Session", wide))
    narrow.runs = wide.runs = 0
    return narrow, wide, backbone


@pytest.mark.parametrize(
    ("present", "seconds", "wide"),
    [(1, 2.2, 1), (2, 2.2, 0), (500, 2.2, 0), (1, 4.1, 0), (4, 1.0, 1), (5, 1.0, 0)],
)
def test_few_images_use_all_cores(present: int, seconds: float, wide: int) -> None:
    """Images use all cores if that is estimated to be as fast as one core each (4 s)."""
    one_core, all_cores, backbone = sessions()
    backbone._seconds = {False: 4.0, True: seconds}
    assert isinstance(embed(backbone, present=present), Embedded)
    assert (one_core.runs, all_cores.runs) == (1 - wide, wide)


@pytest.mark.slow
def test_wrong_estimate_is_corrected() -> None:
    """Single images find the faster session, whatever the first measurement was."""
    one_core, _, backbone = sessions()
    one_core.seconds = 0.0005
    backbone._seconds = {False: 0.0005, True: 0.004}
    for _ in range(60 * TRIAL_INTERVAL):
        embed(backbone, present=1)
    assert backbone._seconds[True] < backbone._seconds[False]


@pytest.mark.slow
def test_single_slow_run_does_not_change_the_choice() -> None:
    """A run that takes a hundred times as long does not change the choice of the session."""
    one_core, all_cores, backbone = sessions()
    backbone._seconds = {False: 0.004, True: 0.002}
    all_cores.seconds = 0.2
    for _ in range(3):
        embed(backbone, present=1)
    assert (one_core.runs, all_cores.runs) == (0, 3)


def test_trials_are_rare() -> None:
    """One of TRIAL_INTERVAL single images runs on the slower session."""
    one_core, all_cores, backbone = sessions()
    backbone._seconds = {False: 1e9, True: 1e-9}
    for _ in range(2 * TRIAL_INTERVAL):
        embed(backbone, present=1)
    assert (one_core.runs, all_cores.runs) == (2, 2 * TRIAL_INTERVAL - 2)


def test_one_core_needs_one_session() -> None:
    """With one core there is one session."""
    backbone = open_backbone(INFO, MODEL, provider="cpu", cores=1)
    assert isinstance(backbone, CpuBackbone)
    assert backbone._sessions[True] is backbone._sessions[False]


def test_both_sessions_give_the_same_embedding() -> None:
    """An image's embedding is the same bit for bit on one core and on all cores."""
    backbone = open_backbone(INFO, MODEL, provider="cpu", cores=2)
    assert isinstance(backbone, CpuBackbone)
    both = [session.run(PIXELS[None])[0] for session in backbone._sessions.values()]
    alone = open_session(MODEL, output="embedding").run(PIXELS[None])[0]
    assert all(np.array_equal(embedding, alone) for embedding in both)


def test_session_error_is_delivered() -> None:
    """An error of the session is delivered, not raised."""
    narrow, wide, backbone = sessions()
    narrow.error = wide.error = ArithmeticError("broken")
    assert embed(backbone, present=1) is narrow.error
