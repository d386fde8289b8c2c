"""Command ``audit``: options and output."""

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
from topwork.repository_option import repository_option
from topwork.storage.location import Location
from topwork.terminal import Console
from topwork_trainer import backbones
from topwork_trainer.audit import Audit
from topwork_trainer.cli import progress
from topwork_trainer.cli.options import (
    cache_option,
    data_argument,
    kind_option,
    show_folders,
    split_names,
)

MOST_SHOWN = 10
"""Raising it prints more file names of a finding and more findings of a kind; --json has all."""

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command()
@data_argument
@repository_option(
    "Repository that stores the exported backbone, or has the text encoder. Default: a "
    "temporary folder.",
    exists=False,
)
@kind_option("image", "text", "audio")
@click.option("--classes", help="Classes to use, separated by commas. Default: all.")
@click.option(
    "--backbone", default=backbones.DEFAULT, help="Backbone, one of `topwork-train backbones`."
)
@click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**31 - 1),
    help="Seed of the cross-validation folds.",
)
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option(
    "--strict", is_flag=True, help="Exit with status 1 if there is an error or a warning."
)
def audit(
    data: Path,
    repository: Location | None,
    kind: str,
    classes: str | None,
    backbone: str,
    seed: int,
    cache: Path | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Audit the labelled photos or texts in DATA, given as for fit.

    Reports unreadable files, duplicates, suspected wrong labels and more, and changes nothing. A
    person must check suspected labels: the photo may only be unusual. If DATA holds the splits of
    a data set, only train is audited; pass the folder of another one to audit that.
    """
    from topwork_trainer import audit as module

    config = module.AuditConfig(
        data=data,
        repository=repository,
        kind=kind,
        classes=split_names(classes),
        backbone=backbone,
        seed=seed,
        cache=cache,
    )
    with progress.stages() as on_progress:
        audited = module.audit(config, on_progress)
    if as_json:
        print(
            json.dumps(
                {
                    "images": sum(audited.counts.values()),
                    "classes": audited.counts,
                    "findings": [asdict(finding) for finding in audited.findings],
                    "left_out": [group.json() for group in audited.left_out],
                    "notes": list(audited.notes),
                }
            )
        )
    else:
        _show(tables.console(), audited)
    if strict and any(finding.severity != "note" for finding in audited.findings):
        sys.exit(1)


def _show(console: Console, audited: Audit) -> None:
    if audited.counts:
        rows = [(label, str(count)) for label, count in audited.counts.items()]
        console.print(tables.table(("label", "usable"), rows))
    show_folders(console, (), audited.notes)  # the findings include left_out
    kinds = groupby(audited.findings, key=lambda finding: (finding.severity, finding.kind))
    for (severity, kind), group in kinds:
        findings = list(group)
        for finding in findings[:MOST_SHOWN]:
            colour = _COLOURS[severity]
            line = f"[{colour}]{severity}[/] {escape(finding.message)}"
            console.print(line, highlight=False, soft_wrap=True)
            _show_names(console, finding)
        if len(findings) > MOST_SHOWN:
            console.print(
                f"and {len(findings) - MOST_SHOWN} more findings of kind {kind}", highlight=False
            )
    if not audited.findings:
        console.print("no findings")


def _show_names(console: Console, finding: Finding) -> None:
    """Print the file names, unless the message has the only one."""
    if len(finding.images) == 1 and finding.images[0] in finding.message:
        return
    for name in finding.images[:MOST_SHOWN]:
        console.print(f"    {name}", markup=False, highlight=False, soft_wrap=True)
    if len(finding.images) > MOST_SHOWN:
        console.print(f"    and {len(finding.images) - MOST_SHOWN} more", highlight=False)
