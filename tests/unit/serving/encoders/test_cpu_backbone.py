"""CPU backbone: a session on one core, and a session on all cores."""

from __future__ import annotations

import math
import time
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from support import tiny

from topwork.runtime.agreement import agreement
from topwork.runtime.backend import Session, open_session
from topwork.serving.encoders.backbone import Embedded
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.encoders.cpu_backbone import WARM_RUNS, CpuBackbone
from topwork.serving.encoders.encoder import Check

MODEL = tiny.backbone_model()
INFO = tiny.backbone_info(MODEL)
PIXELS = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


class FakeSession:
    """Session that embeds every image as ones after a delay, and counts its runs."""

    provider = "FakeExecutionProvider"

    def __init__(self, seconds: float = 0.0) -> None:
        self.runs = 0
        self.seconds = seconds
        self.error: Exception | None = None

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return ones."""
        self.runs += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return np.ones((len(batch), tiny.WIDTH), dtype=np.float32)


def embed(backbone: CpuBackbone, *, wide: bool) -> Embedded | Exception:
    """Return the result, which is delivered exactly once."""
    delivered: list[Embedded | Exception] = []
    backbone.embed(PIXELS, delivered.append, wide=wide)
    (result,) = delivered
    return result


def sessions() -> tuple[FakeSession, FakeSession, CpuBackbone]:
    """Return a narrow and a wide session with their backbone."""
    narrow, wide = FakeSession(), FakeSession()
    backbone = CpuBackbone(INFO, cast("Session", narrow), cast("Session", wide))
    narrow.runs = wide.runs = 0
    return narrow, wide, backbone


@pytest.mark.parametrize("wide", [False, True])
def test_caller_chooses_the_session(wide: bool) -> None:
    """An image runs once, on all cores if the caller asks for them."""
    one_core, all_cores, backbone = sessions()
    result = embed(backbone, wide=wide)
    assert isinstance(result, Embedded)
    assert result.run is None
    assert (one_core.runs, all_cores.runs) == (1 - wide, wide)


def test_seconds_of_the_sessions_are_measured() -> None:
    """Opening a backbone measures the fastest run of each session."""
    one_core, all_cores = FakeSession(0.002), FakeSession(0.001)
    backbone = CpuBackbone(INFO, cast("Session", one_core), cast("Session", all_cores))
    assert (one_core.runs, all_cores.runs) == (WARM_RUNS, WARM_RUNS)
    assert 0.002 <= backbone.seconds[0] < 0.1
    assert 0.001 <= backbone.seconds[1] < 0.1


def test_least_agreement_of_both_sessions_is_the_check() -> None:
    """Each session embeds all probe images in its warm-up runs; the worse one counts."""
    info = tiny.quantised_info(MODEL)
    right, wrong = open_session(MODEL, output="embedding"), FakeSession()
    backbone = CpuBackbone(info, right, cast("Session", wrong))
    assert wrong.runs == WARM_RUNS
    ones = [*np.ones((4, tiny.WIDTH), dtype=np.float32)]
    assert backbone.check == Check(agreement=agreement(info, ones), provider="CPUExecutionProvider")
    assert CpuBackbone(info, right, None).check.agreement == 1.0


def test_backbone_of_an_earlier_release_is_not_checked() -> None:
    """Without expected embeddings the agreement is unknown."""
    assert open_backbone(INFO, MODEL, provider="cpu", cores=2).check.agreement is None


def test_one_core_needs_one_session() -> None:
    """With one core there is one session, and no seconds of a run on all cores."""
    backbone = open_backbone(INFO, MODEL, provider="cpu", cores=1)
    assert isinstance(backbone, CpuBackbone)
    assert backbone._sessions[True] is backbone._sessions[False]
    assert backbone.seconds[0] < backbone.seconds[1] == math.inf


def test_both_sessions_give_the_same_embedding() -> None:
    """An image's embedding is the same bit for bit on one core and on all cores."""
    backbone = open_backbone(INFO, MODEL, provider="cpu", cores=2)
    assert isinstance(backbone, CpuBackbone)
    both = [session.run(PIXELS[None])[0] for session in backbone._sessions.values()]
    alone = open_session(MODEL, output="embedding").run(PIXELS[None])[0]
    assert all(np.array_equal(embedding, alone) for embedding in both)


@pytest.mark.parametrize("wide", [False, True])
def test_session_error_is_delivered(wide: bool) -> None:
    """An error of the session is delivered, not raised."""
    one_core, all_cores, backbone = sessions()
    one_core.error = all_cores.error = ArithmeticError("broken")
    assert embed(backbone, wide=wide) is one_core.error
