"""Headless Chromium, driven by a script of Node with Playwright."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
PLAYWRIGHT = "playwright-core@1.65.1"


def needs_browser(test: Any) -> Any:
    """Mark a test that is skipped where Chromium or npm is not installed."""
    for mark in (
        pytest.mark.network,
        pytest.mark.skipif(not shutil.which("npm"), reason="Node and npm are not installed"),
        pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
    ):
        test = mark(test)
    return test


def install(folder: Path, *packages: str) -> None:
    """Install npm's packages in a folder; skip the test if there is no registry."""
    done = subprocess.run(
        ["npm", "install", "--ignore-scripts", "--cache", folder / "npm", *packages],  # noqa: S607
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install: {done.stderr.splitlines()[:1]}")


def drive(driver: Path, folder: Path, *arguments: str) -> Any:
    """Return what a script prints as JSON; it runs in a folder with its packages."""
    done = subprocess.run(
        ["node", driver, CHROMIUM, *arguments],  # noqa: S607
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
