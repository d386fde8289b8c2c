"""HTML page of an explanation: heat map over the image, probabilities, and nearest examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork.inputs.image import WHOLE, Region
from topwork.printable import encodable
from topwork.report.mistakes import data_uri
from topwork.report.page import environment

SIDE = 960
"""Raising it makes the image sharper and the page larger: long side in pixels."""

HEIGHT = 26
"""Raising it shows the image larger: height in rem."""

CELL = 32
"""Raising it makes the heat map smoother: pixels of a cell of the map."""

FOR, AGAINST = (230, 60, 0), (0, 90, 230)
"""Colours of evidence for and against a label."""

MOST_ALPHA = 200
"""Opacity of the strongest evidence, 0 to 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NearExample:
    """Training image near to the explained one."""

    label: str
    name: str
    similarity: float
    thumbnail: str
    """A data: URI; empty: there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Evidence for a label by position, with the other shares of its logit."""

    values: NDArray[np.float64]
    """(rows, columns)"""
    bias: float
    rest: float
    logit: float
    region: Region
    """The part of the image that it covers."""

    @property
    def image(self) -> str:
        """The map as a data: URI of a PNG, transparent where there is no evidence."""
        return _uri(heat(self.values), "PNG")

    @property
    def style(self) -> str:
        """Position over the image, in CSS."""
        left, top, right, bottom = (100 * edge for edge in self.region)
        return (
            f"left:{left:.3f}%;top:{top:.3f}%;width:{right - left:.3f}%;height:{bottom - top:.3f}%"
        )

    @property
    def is_whole(self) -> bool:
        """True if it covers the whole image."""
        return self.region == WHOLE

    @property
    def total(self) -> float:
        """Sum of the map."""
        return float(self.values.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedImage:
    """Explanation of one image."""

    model: str
    revision: int
    name: str
    """File name of the image."""
    picture: Image.Image
    """The whole image, upright."""
    label: str
    predictions: Sequence[tuple[str, float]]
    """Labels with probabilities, the most probable first."""
    unknown: float | None
    """Probability that the image shows none of the labels, if that makes it unknown."""
    map: HeatMap | None
    map_unavailable: str
    neighbours: Sequence[NearExample]

    @property
    def width(self) -> str:
        """Width of the image on the page, in CSS."""
        return f"min(100%, {HEIGHT * self.picture.width / self.picture.height:.1f}rem)"

    @property
    def image(self) -> str:
        """The image as a data: URI."""
        return _uri(self.picture, "JPEG")


def near_example(label: str, name: str, similarity: float, preview: bytes) -> NearExample:
    """Return a nearest example with its preview, a JPEG file or empty."""
    return NearExample(label=label, name=name, similarity=similarity, thumbnail=data_uri(preview))


def render_explanation(explained: ExplainedImage) -> str:
    """Return the page: self-contained HTML without scripts, like a revision's report."""
    template = environment().get_template("explanation.html.jinja")
    return encodable(template.render(explained=explained, map=explained.map))


def heat(values: NDArray[np.float64]) -> Image.Image:
    """Return a map as an RGBA image of CELL pixels a cell, the more opaque the stronger."""
    rows, columns = values.shape
    small = Image.fromarray(values.astype(np.float32))
    smooth = np.asarray(small.resize((CELL * columns, CELL * rows), Image.Resampling.BICUBIC))
    strength = np.clip(smooth / max(float(np.abs(values).max()), 1e-12), -1, 1)
    pixels = np.empty((*smooth.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(strength[..., None] > 0, FOR, AGAINST)
    pixels[..., 3] = np.abs(strength) * MOST_ALPHA
    return Image.fromarray(pixels)


def _uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"
