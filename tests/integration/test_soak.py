"""The soak, small: see ``tests/soak`` and ``make soak``."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.soak import soak

KILLS = 6


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_done_twice_whatever_is_killed(tmp_path: Path) -> None:
    """Clients change and ask three models while server and worker are killed: all promises hold."""
    soaked = soak(tmp_path, kills=KILLS, minutes=5, seed=1)
    assert soaked.ledger.violations == []
    assert len(soaked.kills) >= KILLS
    assert soaked.ledger.of("operations")["done"] > 0
    assert soaked.ledger.of("answers")["right"] > 0
