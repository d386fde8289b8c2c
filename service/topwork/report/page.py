"""A revision's report: one HTML page, made from its content."""

from __future__ import annotations

import functools
import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from topwork.printable import encodable
from topwork.report import (
    comparison,
    confusion,
    embedding_map,
    findings,
    intervals,
    labels,
    mistakes,
    reliability,
    words,
)
from topwork.report.content import Content

SHARDS = 20
"""Shards of exemplars that are named at most."""


def render(content: Content) -> str:
    """Return the report: HTML that needs no other file, no network and no script.

    Equal content gives an equal page: its times are the manifest's. Half of a surrogate pair is
    escaped, so the page can always be written as UTF-8.
    """
    backbones = content.making.backbones
    page = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            content=content,
            manifest=content.manifest,
            metrics=content.metrics,
            making=content.making,
            seen=int(content.exemplars.seen.sum()),
            labels=labels.table(content.metrics),
            comparison=comparison.compare(content),
            confusion=confusion.lay_out(content.metrics),
            reliability=reliability.lay_out(content.metrics),
            uniform_loss=math.log(len(content.metrics.per_label)),
            mistakes=mistakes.gather(content),
            map=embedding_map.lay_out(content),
            audit=findings.group(content.making.findings),
            names_shown=findings.NAMES,
            shards_shown=SHARDS,
            backbone_axis=intervals.axis([one.accuracy_low for one in backbones if not one.error]),
        )
    )
    return encodable(page)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("topwork.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        between=words.between,
        count=words.count,
        few=words.few,
        number=words.number,
        percent=words.percent,
        points=words.points,
        several=words.several,
        spaced=words.spaced,
        when=words.when,
    )
    return environment
