"""HTML page of a revision's report, rendered from its content."""

from __future__ import annotations

import functools
import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from topwork.inputs.kinds import kind_of
from topwork.printable import encodable
from topwork.report import (
    comparison,
    confusion,
    embedding_map,
    findings,
    formatting,
    intervals,
    labels,
    mistakes,
    reliability,
)
from topwork.report.content import Content
from topwork.report.previews import nouns

SHARDS = 20
"""Largest number of exemplar shards listed."""


def render(content: Content) -> str:
    """Return the report: self-contained HTML without scripts, other files or network access.

    The same content gives the same page: times are those of the manifest. Lone surrogates are
    escaped, so the page can always be written as UTF-8.
    """
    backbones = content.making.backbones
    page = (
        environment()
        .get_template("page.html.jinja")
        .render(
            **nouns(kind_of(content.backbone.preprocess).name),
            content=content,
            manifest=content.manifest,
            revision=content.manifest.revision,
            cross_validated=True,
            metrics=content.metrics,
            making=content.making,
            seen=int(content.exemplars.seen.sum()),
            groups=content.exemplars.count_groups(),
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
            backbone_axis=intervals.axis(
                [backbone.accuracy_low for backbone in backbones if not backbone.error]
            ),
        )
    )
    return encodable(page)


@functools.cache
def environment() -> Environment:
    """Return the environment of all templates, which escapes what it is given."""
    made = Environment(
        loader=PackageLoader("topwork.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        article=formatting.article,
        between=formatting.between,
        count=formatting.count,
        few=formatting.few,
        number=formatting.number,
        percent=formatting.percent,
        points=formatting.points,
        several=formatting.several,
        spaced=formatting.spaced,
        when=formatting.when,
    )
    return made
