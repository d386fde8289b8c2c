"""docs/architecture.md names modules that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SOURCES = [ROOT / "service" / "topwork", ROOT / "service", ROOT / "trainer" / "topwork_trainer"]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([a-z_/0-9]+/[a-z_0-9]+\.py)`", PAGE))))
def test_module_of_the_page_exists(path: str) -> None:
    """Every path of a module is below one of the source roots."""
    assert any((source / path).is_file() for source in SOURCES)
