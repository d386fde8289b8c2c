"""Tests that SECURITY.md refers to."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()


def test_named_tests_exist() -> None:
    """Each test file that the page names exists."""
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"test_[a-z_]+\.py", PAGE))
    assert len(named) > 10
    assert named <= existing


def test_each_defence_names_its_test() -> None:
    """Each row of the table of defences names a test."""
    table = PAGE[PAGE.index("| against |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 8
    assert all("test_" in row.split("|")[3] for row in table)
