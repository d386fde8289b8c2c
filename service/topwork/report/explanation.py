"""HTML page of an explanation: the input, heat map, probabilities, and nearest examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from topwork.inputs import audio, text
from topwork.inputs.image import WHOLE, Region, upright
from topwork.inputs.thumbnail import LARGEST
from topwork.printable import encodable
from topwork.report.page import environment
from topwork.report.previews import Preview

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
    """Training input near to the explained one."""

    label: str
    name: str
    similarity: float
    preview: Preview


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
class Shown:
    """The explained input: a picture, or a preview of another kind."""

    preview: Preview
    picture: Image.Image | None = None
    """The whole image, upright."""

    @property
    def kind(self) -> str:
        """Kind of the input."""
        return self.preview.kind

    @property
    def width(self) -> str:
        """Width of the picture on the page, in CSS."""
        assert self.picture is not None, "the template asks first"
        return f"min(100%, {HEIGHT * self.picture.width / self.picture.height:.1f}rem)"

    @property
    def image(self) -> str:
        """The picture as a data: URI."""
        assert self.picture is not None, "the template asks first"
        return _uri(self.picture, "JPEG")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedInput:
    """Explanation of one input."""

    model: str
    revision: int
    name: str
    """File name of the input; empty: it has none."""
    shown: Shown
    label: str
    predictions: Sequence[tuple[str, float]]
    """Labels with probabilities, the most probable first."""
    unknown: float | None
    """Probability that the input has none of the labels, if that makes it unknown."""
    map: HeatMap | None
    map_unavailable: str
    neighbours: Sequence[NearExample]


def shown_image(content: bytes) -> Shown:
    """Return an encoded image as a page shows it. Raises ImageError."""
    return Shown(preview=Preview(kind="image", content=b""), picture=upright(content, SIDE))


def shown_text(content: bytes) -> Shown:
    """Return a text as a page shows it."""
    return Shown(preview=Preview(kind="text", content=text.preview(content)))


def shown_audio(content: bytes) -> Shown:
    """Return a recording as a page plays it: its loudest seconds. Raises ImageError, NotReady."""
    return Shown(preview=Preview(kind="audio", content=audio.preview(content, LARGEST)))


def near_example(
    kind: str, label: str, name: str, similarity: float, content: bytes
) -> NearExample:
    """Return a nearest example with its preview, which may be empty."""
    preview = Preview(kind=kind, content=content)
    return NearExample(label=label, name=name, similarity=similarity, preview=preview)


def render_explanation(explained: ExplainedInput) -> str:
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
