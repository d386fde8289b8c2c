"""Contrast of the report's colours in light and dark mode."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from topwork.report.confusion import DEEPEST

Colour = tuple[float, ...]


@pytest.fixture(params=["light", "dark"])
def colours(request: pytest.FixtureRequest) -> dict[str, Colour]:
    """Return the named colours (0..1) of a scheme."""
    style = resources.files("topwork.report").joinpath("templates/style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    return {
        name: tuple(int(value[place : place + 2], 16) / 255 for place in (0, 2, 4))
        for name, value in re.findall(
            r"--([\w-]+): #(\w{6});", light if request.param == "light" else dark
        )
    }


@pytest.mark.parametrize("text", ["ink", "soft", "accent"])
@pytest.mark.parametrize("ground", ["page", "card", "faint", "accent-soft"])
def test_text_has_enough_contrast(colours: dict[str, Colour], text: str, ground: str) -> None:
    """Text has a contrast of at least 4.5 to its background (WCAG 2.2, level AA)."""
    assert _contrast(colours[text], colours[ground]) >= 4.5


@pytest.mark.parametrize("text", ["ink", "alarm"])
def test_rejection_has_enough_contrast(colours: dict[str, Colour], text: str) -> None:
    """The rejection notice has a contrast of at least 4.5."""
    assert _contrast(colours[text], colours["alarm-soft"]) >= 4.5


@pytest.mark.parametrize("heat", ["soft", "accent"])
def test_numbers_on_heat_have_enough_contrast(colours: dict[str, Colour], heat: str) -> None:
    """Numbers in the deepest cell of the confusion matrix have a contrast of at least 4.5."""
    share = DEEPEST / 100
    mixed = tuple(
        share * channel + (1 - share) * other
        for channel, other in zip(colours[heat], colours["card"], strict=True)
    )
    assert _contrast(colours["ink"], mixed) >= 4.5


@pytest.mark.parametrize("label", [f"k{index}" for index in range(8)])
def test_classes_have_enough_contrast(colours: dict[str, Colour], label: str) -> None:
    """Markers and large names on the map have a contrast of at least 3."""
    assert _contrast(colours[label], colours["card"]) >= 3


def _contrast(colour: Colour, other: Colour) -> float:
    darker, lighter = sorted((_luminance(colour), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Colour) -> float:
    """Return the relative luminance as WCAG defines it."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
