"""Placement of names on a map without overlaps."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

LINE = 24
"""Height of a name, enough for the larger letters on a phone."""
LONGEST = 18
"""Largest number of characters of a name; longer names are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Name with its position on the map."""

    text: str
    style: int
    x: float
    """Middle of the text."""
    y: float
    """Baseline of the text."""


def place(
    names: Sequence[tuple[str, int, float, float]], *, width: int, height: int
) -> tuple[Placed, ...]:
    """Return names (text, style, x, y) placed above or below x, y, as near as free space allows."""
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
                line
                for line in wanted
                if all(
                    abs(line - other) >= LINE or abs(middle - x_other) >= half + half_other
                    for x_other, other, half_other in taken
                )
            ),
            y,
        )
        taken.append((middle, baseline, half))
        placed.append(Placed(text=text, style=style, x=round(middle, 1), y=round(baseline, 1)))
    return tuple(placed)


def _columns(text: str) -> int:
    """Return the approximate width of a text in letters; wide characters (CJK, emoji) count 2."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
