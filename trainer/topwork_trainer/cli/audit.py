"""The command ``audit``: its options, and how its findings are shown."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import click
from rich.markup import escape

from topwork import tables
from topwork.bundle.findings import Finding
from topwork.terminal import Console
from topwork_trainer import backbones
from topwork_trainer.audit import Audit
from topwork_trainer.cli import progress
from topwork_trainer.cli.options import cache_option, data_argument, show_folders, split_names

NAMES = 10
"""File names shown of a finding, and findings of one kind; --json has them all."""

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command()
@data_argument
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the backbone's export is or is to be kept. Default: a temporary folder.",
)
@click.option("--classes", help="Folders to use, comma-separated. Default: all.")
@click.option("--backbone", default=backbones.DEFAULT, help="See `topwork-train backbones`.")
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Seed of the cross-validation's folds.",
)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.option("--strict", is_flag=True, help="Exit with status 1 for any error or warning.")
def audit(
    data: Path,
    repository: Path | None,
    classes: str | None,
    backbone: str,
    seed: int,
    cache: Path | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Audit the photos in DATA, a folder with a folder for each class.

    Of a data set with splits only the photos in train are looked at: pass DATA/val for others.
    Nothing is changed. Suspected labels are for a person to look at: a photo may be just unusual.
    """
    from topwork_trainer import audit as auditing

    config = auditing.AuditConfig(
        data=data,
        repository=repository,
        classes=split_names(classes),
        backbone=backbone,
        seed=seed,
        cache=cache,
    )
    with progress.stages() as on_progress:
        audited = auditing.audit(config, on_progress)
    if as_json:
        print(
            json.dumps(
                {
                    "images": sum(audited.counts.values()),
                    "classes": audited.counts,
                    "findings": [asdict(one) for one in audited.findings],
                    "left_out": [one.json() for one in audited.left_out],
                    "notes": list(audited.notes),
                }
            )
        )
    else:
        _show(tables.console(), audited)
    if strict and any(one.severity != "note" for one in audited.findings):
        sys.exit(1)


def _show(console: Console, audited: Audit) -> None:
    if audited.counts:
        rows = [(label, str(count)) for label, count in audited.counts.items()]
        console.print(tables.table(("label", "usable images"), rows))
    show_folders(console, (), audited.notes)  # what was left out is among the findings
    kinds = groupby(audited.findings, key=lambda one: (one.severity, one.kind))
    for (severity, kind), group in kinds:
        findings = list(group)
        for finding in findings[:NAMES]:
            colour = _COLOURS[severity]
            line = f"[{colour}]{severity}[/] {escape(finding.message)}"
            console.print(line, highlight=False, soft_wrap=True)
            _show_names(console, finding)
        if len(findings) > NAMES:
            console.print(f"and {len(findings) - NAMES} more of the kind {kind}", highlight=False)
    if not audited.findings:
        console.print("nothing found")


def _show_names(console: Console, finding: Finding) -> None:
    """Print the names, unless the message holds the only one."""
    if len(finding.images) == 1 and finding.images[0] in finding.message:
        return
    for name in finding.images[:NAMES]:
        console.print(f"    {name}", markup=False, highlight=False, soft_wrap=True)
    if len(finding.images) > NAMES:
        console.print(f"    and {len(finding.images) - NAMES} more", highlight=False)
