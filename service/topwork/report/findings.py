"""Section of the report: findings of the data audit, most severe first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from topwork.bundle.findings import Finding, Severity
from topwork.report.mistakes import SUSPECTED

SHOWN = 3
"""Number of findings of a kind that are not folded."""
FOLDED = 50
"""Largest number of folded findings of a kind; more are only counted."""
NAMES = 50
"""Largest number of file names per finding."""

MEANING: tuple[tuple[Severity, str, str], ...] = (
    ("error", "Errors", "These files cannot be used and were left out."),
    ("warning", "Warnings", "These problems probably reduce accuracy; fix them first."),
    ("note", "Notes", "No action is needed."),
)
"""Severities with heading and explanation, most severe first."""
SUSPICIONS = (
    "Check the suspected labels in the section of the mistakes. The other notes need no action."
)
"""Explanation of notes that include suspected labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingKind:
    """Findings of one kind and severity, in input order."""

    shown: tuple[Finding, ...]
    folded: tuple[Finding, ...]
    """Findings that the reader has to unfold."""
    left_out: int
    """Number of findings that are not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Findings of one severity."""

    severity: Severity
    title: str
    meaning: str
    kinds: tuple[FindingKind, ...]
    count: int
    """Number of findings."""


def group(findings: Iterable[Finding]) -> tuple[Group, ...]:
    """Return the findings by severity, then by kind, without empty severities."""
    kinds: dict[Severity, dict[str, list[Finding]]] = defaultdict(lambda: defaultdict(list))
    for finding in findings:
        kinds[finding.severity][finding.kind].append(finding)
    return tuple(
        Group(
            severity=severity,
            title=title,
            meaning=SUSPICIONS
            if severity == "note" and SUSPECTED & kinds[severity].keys()
            else meaning,
            kinds=tuple(
                FindingKind(
                    shown=tuple(same[:SHOWN]),
                    folded=tuple(same[SHOWN : SHOWN + FOLDED]),
                    left_out=max(0, len(same) - SHOWN - FOLDED),
                )
                for same in kinds[severity].values()
            ),
            count=sum(map(len, kinds[severity].values())),
        )
        for severity, title, meaning in MEANING
        if severity in kinds
    )
