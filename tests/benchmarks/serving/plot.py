"""SVG plot of servers: latency of a lone request against throughput of many callers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.serving.loads import Row
from topwork.report.placement import LINE, place

WIDTH, HEIGHT = 760, 440
LEFT, TOP, RIGHT, BOTTOM = 70, 30, 30, 70
MANY = 32
"""Number of callers."""
OURS = "topwork"

_STYLE = """
text { fill: #26332a; font: 15px system-ui, Helvetica, Arial, sans-serif; text-anchor: middle;
  stroke: #fbfaf5; stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
.ours { fill: #2c7a3f; font-weight: 700; }
.tick { fill: #59616b; font-size: 13px; }
.end { text-anchor: end; }
.grid { stroke: #d8dccf; }
.leader { stroke: #8a8f7a; }
.page { fill: #fbfaf5; }
circle.peer { fill: #8a8f7a; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e9df; stroke: #14171a; }
  .ours { fill: #7fcf8f; }
  .tick { fill: #a3abb4; }
  .grid { stroke: #33393f; }
  .page { fill: #14171a; }
}
"""


def both_ends(rows: Sequence[Row]) -> str:
    """Return an SVG with a point for each server; the best corner is at the upper left."""
    lone = {row.server: row.of_lone for row in rows if row.of_lone is not None}
    many = {row.server: row.of_ceiling for row in rows if row.callers == MANY}
    servers = [server for server in lone if server in many]
    shortest = min(1.0, math.floor(min(lone[server] for server in servers) * 2) / 2)
    longest = max(2.0, math.ceil(max(lone[server] for server in servers) * 2) / 2)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(times: float) -> float:
        return LEFT + width * (times - shortest) / (longest - shortest)

    def y(share: float) -> float:
        return TOP + height * (1 - share)

    points = [(server, x(lone[server]), y(many[server])) for server in servers]
    names = place(
        [(name, 0, left, top - LINE / 3) for name, left, top in points], width=WIDTH, height=HEIGHT
    )
    steps = [shortest + step / 2 for step in range(int(2 * (longest - shortest)) + 1)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        "<title>Latency of a lone request and throughput of many, by server</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        *(_line(LEFT, y(share), WIDTH - RIGHT, y(share)) for share in _SHARES),
        *(_line(x(step), TOP, x(step), HEIGHT - BOTTOM) for step in steps),
        *(_text("tick end", LEFT - 8, y(share) + 5, f"{share:.0%}") for share in _SHARES),
        *(_text("tick", x(step), HEIGHT - BOTTOM + 20, f"{step:g}x") for step in steps),
        _text(
            "",
            LEFT + width / 2,
            HEIGHT - 18,
            "p50 of one caller, times the quickest possible answer (all cores on one image)",
        ),
        f'<g transform="rotate(-90)">{_text("", -(TOP + height / 2), 18, _UPWARDS)}</g>',
        *(
            f'<path class="leader" d="M{left:.1f} {top:.1f}L{name.x} {name.y - LINE / 4}"/>'
            for (_, left, top), name in zip(points, names, strict=True)
        ),
        *(_text(_kind(name.text), name.x, name.y, name.text) for name in names),
        *(
            f'<circle class="{_kind(name)}" cx="{left:.1f}" cy="{top:.1f}" r="6"/>'
            for name, left, top in points
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


_SHARES = (0, 0.25, 0.5, 0.75, 1)
_UPWARDS = f"images/s of {MANY} callers, of the ceiling"


def _kind(server: str) -> str:
    return "ours" if server == OURS else "peer"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="grid" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _text(style: str, x: float, y: float, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{text}</text>'
