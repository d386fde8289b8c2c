"""Short run of the soak test: see ``tests/soak`` and ``make soak``."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.place import PLACES
from soak.soak import soak

KILLS = 4


@pytest.mark.timeout(600)
def test_soak_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    """Changes are done exactly once and all answers are right while processes are killed."""
    with PLACES["files"](tmp_path) as place:
        result = soak(place, tmp_path / "armed", kills=KILLS, minutes=5, seed=1)
    assert result.ledger.violations == []
    assert len(result.kills) >= KILLS
    assert result.ledger.counts_of("operations")["done"] > 0
    assert result.ledger.counts_of("answers")["right"] > 0
