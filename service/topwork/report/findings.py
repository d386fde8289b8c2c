"""Section of the report: findings of the audit, gravest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from topwork.bundle.findings import Finding, Severity
from topwork.report.mistakes import SUSPECTED

SHOWN = 3
"""Findings of a kind shown at once; the others are folded."""
FOLDED = 50
"""Findings of a kind that are folded at most; more are only counted."""
NAMES = 50
"""File names shown of a finding at most."""

MEANING: tuple[tuple[Severity, str, str], ...] = (
    ("error", "Not used", "These images could not be learnt from and were left out."),
    ("warning", "Likely to harm", "Put these right first; each is worth a look."),
    ("note", "Good to know", "Nothing needs to be done about these."),
)
"""Severities with their headings, gravest first."""
SUSPICIONS = (
    "The suspected labels are for you to judge, by their pictures under “Images worth a look”. "
    "Nothing needs to be done about the others."
)
"""What notes mean where there are suspected labels among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingKind:
    """The findings of one kind and severity, in the order in which they came."""

    shown: tuple[Finding, ...]
    folded: tuple[Finding, ...]
    """More, for those who ask."""
    left_out: int
    """How many more there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The findings of one severity."""

    severity: Severity
    title: str
    meaning: str
    kinds: tuple[FindingKind, ...]
    count: int
    """Findings in all."""


def group(findings: Iterable[Finding]) -> tuple[Group, ...]:
    """Return the findings by severity, then by kind; severities without any are left out."""
    kinds: dict[Severity, dict[str, list[Finding]]] = defaultdict(lambda: defaultdict(list))
    for one in findings:
        kinds[one.severity][one.kind].append(one)
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
