"""Fixtures of the encoders' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import forks


@pytest.fixture(scope="module", autouse=True)
def _forked_encoders() -> Iterator[None]:
    """Fork encoder processes, in a third of the time that it takes to spawn them."""
    with forks.forking():
        yield
