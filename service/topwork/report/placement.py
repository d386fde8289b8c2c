"""Placement of names on a map, so that none covers another."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

LINE = 24
"""Height of a name; the phone's larger letters need it, too."""
LONGEST = 18
"""Characters of a name at most; longer ones are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A name on the map."""

    text: str
    style: int
    x: float
    """Of its middle."""
    y: float
    """Of its baseline."""


def place(
    names: Sequence[tuple[str, int, float, float]], *, width: int, height: int
) -> tuple[Placed, ...]:
    """Return names (text, style, x, y) near x, y: as near as others leave room, above or below."""
    taken: list[tuple[float, float, float]] = []
    placed = []
    for name, style, x, y in names:
        text = (
            name
            if len(name) <= LONGEST
            else name[: LONGEST - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
        )
        half = min(width / 2, 6.5 * _columns(text))
        middle = min(max(x, half), width - half)
        steps = [0, *(sign * step for step in range(1, 40) for sign in (-1, 1))]
        wanted = [min(max(y + step * LINE / 2, LINE), height - LINE / 2) for step in steps]
        baseline = next(
            (
                one
                for one in wanted
                if all(
                    abs(one - other) >= LINE or abs(middle - x_other) >= half + half_other
                    for x_other, other, half_other in taken
                )
            ),
            y,
        )
        taken.append((middle, baseline, half))
        placed.append(Placed(text=text, style=style, x=round(middle, 1), y=round(baseline, 1)))
    return tuple(placed)


def _columns(text: str) -> int:
    """Return about how wide a text is in letters: East Asian ones and emoji count twice."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)
