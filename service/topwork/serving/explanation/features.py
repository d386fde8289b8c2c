"""Feature maps of one image, scaled so that their mean over all positions is its embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topwork.arrays import Float32Array
from topwork.serving.explanation.map_graph import LayerNorm, MapLayout, MapPart, NoMap

MOST_UNEXPLAINED = 0.02
"""Raising it accepts maps whose mean is less like the embedding: relative length of the rest."""


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """Feature map (rows, columns, C) whose mean is ``embedding[begin : begin + C]``."""

    begin: int
    values: Float32Array

    @property
    def columns(self) -> slice:
        """The columns of the embedding."""
        return slice(self.begin, self.begin + self.values.shape[2])


@dataclass(frozen=True, slots=True)
class Features:
    """Embedding of an image and the feature maps that it is the mean of."""

    embedding: Float32Array
    """(D,)"""
    parts: tuple[FeaturePart, ...]

    def magnitudes(self) -> Float32Array:
        """Return the mean magnitude (D,) of each feature over its positions."""
        return np.concatenate([np.abs(part.values).mean(axis=(0, 1)) for part in self.parts])

    def spread(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the map (rows, columns) of a weighted sum of the embedding, weights (D,).

        Its sum is ``embedding @ weights``. Parts with fewer positions are resized to the finest.
        """
        maps = [
            part.values @ weights[part.columns] / (part.values.shape[0] * part.values.shape[1])
            for part in self.parts
        ]
        rows = max(each.shape[0] for each in maps)
        columns = max(each.shape[1] for each in maps)
        return np.asarray(
            sum(
                _shares(rows, len(each)) @ each @ _shares(columns, each.shape[1]).T for each in maps
            )
        )


def features(row: Float32Array, layout: MapLayout) -> Features:
    """Return the features in a row of the output of ``with_maps``.

    Raises NoMap if the mean of a map is no multiple of its part of the embedding.
    """
    embedding = row[: layout.width]
    parts, begin, place = [], 0, layout.width
    for part in layout.parts:
        end = place + layout.views * part.size
        views = _upright(row[place:end].reshape(layout.views, -1), part)
        target = embedding[begin : begin + part.channels]
        parts.append(FeaturePart(begin, _scaled(views, target, part.norm)))
        begin, place = begin + part.channels, end
    return Features(embedding, tuple(parts))


def _upright(views: Float32Array, part: MapPart) -> Float32Array:
    """Return the views (V, rows, columns, C) of a map, the second one mirrored back."""
    if part.channels_first:
        shaped = views.reshape(-1, part.channels, part.rows, part.columns).transpose(0, 2, 3, 1)
    else:
        shaped = views.reshape(-1, part.rows, part.columns, part.channels)
    return np.stack([shaped[0], *(view[:, ::-1] for view in shaped[1:])])


def _scaled(views: Float32Array, target: Float32Array, norm: LayerNorm | None) -> Float32Array:
    """Return the map whose mean is ``target``: a sum of the views, each with its own factor."""
    if norm is not None:
        views = _normalised(views, norm)
    means = views.mean(axis=(1, 2), dtype=np.float64)
    # Views are nearly equal: of all factors that fit, the smallest, which are equal, too.
    factors = np.linalg.lstsq(means.T, target.astype(np.float64), rcond=1e-3)[0]
    found = np.einsum("v,vrcd->rcd", factors.astype(np.float32), views)
    rest = target - found.mean(axis=(0, 1), dtype=np.float64)
    if np.linalg.norm(rest) > MOST_UNEXPLAINED * np.linalg.norm(target):
        raise NoMap("its embedding is no multiple of the mean of its feature map")
    return np.asarray(found + rest, dtype=np.float32)


def _normalised(views: Float32Array, norm: LayerNorm) -> Float32Array:
    """Return the map whose mean is the layer normalisation of the mean of each view.

    The normalisation subtracts a mean and divides by a deviation over channels; the deviation is
    that of the mean over positions.
    """
    deviation = np.sqrt(views.mean(axis=(1, 2)).var(axis=1) + norm.epsilon)[:, None, None, None]
    centred = views - views.mean(axis=3, keepdims=True)
    return np.asarray(centred / deviation * norm.scale + norm.bias, dtype=np.float32)


def _shares(after: int, before: int) -> NDArray[np.float64]:
    """Return the share (after, before) of each old cell of a line that lies in each new one."""
    edges = np.arange(after + 1) * before / after
    cells = np.arange(before)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.maximum(overlap, 0))
