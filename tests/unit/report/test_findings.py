"""The audit's findings are sorted by how much they matter."""

from __future__ import annotations

from topwork.bundle.findings import Finding, Severity
from topwork.report.findings import FOLDED, SHOWN, group


def test_what_was_not_used_comes_first() -> None:
    """Errors come before warnings, warnings before notes; what there is none of has no heading."""
    found = group([_finding("note"), _finding("error"), _finding("note")])
    assert [(one.severity, one.count) for one in found] == [("error", 1), ("note", 2)]


def test_many_findings_of_a_kind_are_folded() -> None:
    """The first ones of a kind are shown and the others folded, in the order in which they came."""
    findings = [_finding("warning", message=str(number)) for number in range(9)]
    (kind,) = group(findings)[0].kinds
    assert len(kind.shown) == SHOWN
    assert [*kind.shown, *kind.folded] == findings


def test_very_many_findings_are_counted() -> None:
    """Of a thousand of a kind only the first are on the page, and how many more there are."""
    (kind,) = group([_finding("note")] * 1000)[0].kinds
    assert len(kind.folded) == FOLDED
    assert kind.left_out == 1000 - SHOWN - FOLDED


def test_kinds_stay_together() -> None:
    """Findings of one kind stand together, where the first of them came."""
    found = group([_finding("note", "b"), _finding("note", "a"), _finding("note", "b")])
    assert [[one.kind for one in kind.shown] for kind in found[0].kinds] == [["b", "b"], ["a"]]


def test_suspected_labels_want_a_decision() -> None:
    """Of photos whose labels may be wrong the page does not say that nothing is to be done."""
    suspected = group([_finding("note", "suspected_label"), _finding("note")])
    assert "are for you to judge" in suspected[0].meaning
    assert group([_finding("note")])[0].meaning == "Nothing needs to be done about these."


def _finding(severity: Severity, kind: str = "kind", message: str = "") -> Finding:
    return Finding(kind=kind, severity=severity, message=message, images=(), labels=())
