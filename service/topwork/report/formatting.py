"""Formatting of numbers and times as text."""

from __future__ import annotations

from datetime import UTC, datetime

NO_BREAK = "\N{NARROW NO-BREAK SPACE}"


def count(number: int) -> str:
    """Return a whole number, such as ``2,000``."""
    return f"{number:,}"


def few(number: int) -> str:
    """Return a whole number in at most four characters, such as ``1.2k``."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            share = number / size
            return f"{share:.1f}{unit}" if share < 9.95 else f"{share:.0f}{unit}"
    return str(number)


def several(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 image`` or ``2,000 images``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def article(noun: str) -> str:
    """Return a noun with its indefinite article, such as ``an image``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent, such as ``91.9 %``; ``100 %`` and ``0 %`` are exact."""
    if share in {0.0, 1.0}:
        return f"{100 * share:.0f}{NO_BREAK}%"
    smallest = 10**-digits
    rounded = round(100 * share, digits)
    if rounded >= 100:
        return f"> {100 - smallest:.{digits}f}{NO_BREAK}%"
    if rounded <= 0:
        return f"< {smallest:.{digits}f}{NO_BREAK}%"
    return f"{rounded:.{digits}f}{NO_BREAK}%"


def between(low: float, high: float) -> str:
    """Return an interval of shares in percent, such as ``90.6-93.0 %``, with an en dash."""
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}{NO_BREAK}%"


def points(difference: float) -> str:
    """Return a difference of shares in percentage points, such as ``+0.4``, with a minus sign."""
    return number(100 * difference, 1, sign=True)


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """Return a number with ``digits`` decimals and a minus sign; ``sign`` adds a plus sign, too."""
    rounded = round(value, digits) or 0.0
    plus = "+" if sign and rounded > 0 else ""
    return f"{plus}{rounded:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def spaced(word: str) -> str:
    """Return an identifier with spaces, such as ``nearest mean`` for ``nearest_mean``."""
    return word.replace("_", " ")


def when(moment: datetime) -> str:
    """Return a time in UTC, such as ``2026-03-01 14:05 UTC``."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
