"""Completeness of the tables in docs/configuration.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def test_tables_have_exactly_the_options_of_the_commands() -> None:
    """The tables name all options of serve and fit, and no others."""
    for package, command, heading in (
        ("topwork", "serve", "| `topwork serve` |"),
        ("topwork_trainer", "fit", "| `topwork-train fit DATA` |"),
    ):
        table = PAGE[PAGE.index(heading) :].split("\n\n")[0]
        shown = set(re.findall(r"`(--[a-z-]+)`", table))
        help_text = subprocess.run(
            [sys.executable, "-m", f"{package}.cli", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown == set(re.findall(r"^ +(--[a-z-]+)", help_text, flags=re.MULTILINE)) - {
            "--help"
        } | set(re.findall(r"/ (--no-[a-z-]+)", help_text))
