"""Verdict of `make audit` on pip-audit's report."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest

VERDICT = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "audit.py"))["verdict"]


def report(*packages: Mapping[str, object]) -> str:
    """Return a report in JSON."""
    return json.dumps({"dependencies": packages, "fixes": []})


SOUND = {"name": "a", "version": "1", "vulns": []}
UNKNOWN = {"name": "b", "version": "2", "skip_reason": "not found"}
BROKEN = {"name": "c", "version": "3", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["4"]}]}


@pytest.mark.parametrize(
    ("output", "errors", "status", "message"),
    [
        (report(SOUND, UNKNOWN), "", 0, "0 known vulnerabilities in 1 packages; 1 are not known"),
        (report(SOUND, BROKEN), "", 1, "c 3: CVE-2026-1, fixed in 4"),
        (report(UNKNOWN), "", 0, "nothing was audited: no advisory service knows the 1 packages"),
        ("", "Traceback\nConnectionError: no route", 0, "(ConnectionError: no route)"),
        ("[]", "", 0, "no output"),
    ],
)
def test_only_a_known_vulnerability_fails(
    output: str, errors: str, status: int, message: str
) -> None:
    """A known vulnerability is named and fails; an unreachable advisory service is reported."""
    code, text = VERDICT(output, errors)
    assert code == status
    assert message in text
