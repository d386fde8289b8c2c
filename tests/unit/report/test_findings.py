"""Data audit section: findings are grouped by severity and kind."""

from __future__ import annotations

from topwork.bundle.findings import Finding, Severity
from topwork.report.findings import FOLDED, SHOWN, group


def test_groups_are_sorted_by_severity() -> None:
    """Errors come before warnings, warnings before notes; an empty severity has no heading."""
    found = group([_finding("note"), _finding("error"), _finding("note")])
    assert [(section.severity, section.count) for section in found] == [("error", 1), ("note", 2)]


def test_many_findings_of_a_kind_are_folded() -> None:
    """The first findings of a kind are shown and the others folded, in input order."""
    findings = [_finding("warning", message=str(number)) for number in range(9)]
    (kind,) = group(findings)[0].kinds
    assert len(kind.shown) == SHOWN
    assert [*kind.shown, *kind.folded] == findings


def test_very_many_findings_are_counted() -> None:
    """Of 1,000 findings of a kind only the first are listed; the others are counted."""
    (kind,) = group([_finding("note")] * 1000)[0].kinds
    assert len(kind.folded) == FOLDED
    assert kind.left_out == 1000 - SHOWN - FOLDED


def test_kinds_stay_together() -> None:
    """Findings of one kind are adjacent, in the order of the kinds' first findings."""
    found = group([_finding("note", "b"), _finding("note", "a"), _finding("note", "b")])
    assert [[finding.kind for finding in kind.shown] for kind in found[0].kinds] == [
        ["b", "b"],
        ["a"],
    ]


def test_suspected_labels_need_a_check() -> None:
    """Notes with suspected labels ask the reader to check them."""
    suspected = group([_finding("note", "suspected_label"), _finding("note")])
    assert "Check the suspected labels" in suspected[0].meaning
    assert group([_finding("note")])[0].meaning == "No action is needed."


def _finding(severity: Severity, kind: str = "kind", message: str = "") -> Finding:
    return Finding(kind=kind, severity=severity, message=message, images=(), labels=())
