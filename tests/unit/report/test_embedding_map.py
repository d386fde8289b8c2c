"""Embedding map section: all classes are shown, mistakes are marked, the size is bounded."""

from __future__ import annotations

import numpy as np
from support.reports import content

from topwork.report import embedding_map, placement
from topwork.report.embedding_map import COLOURED, NAMED, lay_out, pick


def test_small_classes_are_not_crowded_out() -> None:
    """All rows of a small class and the first rows of a large class are picked."""
    targets = np.array([0] * 100 + [1] * 5)
    assert pick(targets, 20).tolist() == [*range(15), *range(100, 105)]


def test_few_images_are_all_shown() -> None:
    """All images are on the map if there are at most POINTS."""
    found = lay_out(content())
    assert (found.shown, found.images) == (90, 90)
    assert sum(layer.marks.count("M") for layer in found.layers) == 90
    assert found.rest is None


def test_mistakes_have_rings() -> None:
    """The number of rings is the number of misclassified images."""
    made = content()
    wrong = sum(map(sum, made.metrics.confusion)) - sum(
        row[index] for index, row in enumerate(made.metrics.confusion)
    )
    assert lay_out(made).wrong.count("M") == wrong > 0


def test_many_labels_share_the_grey_layer() -> None:
    """The labels with the most mistakes have a colour, a shape and a name; others are grey."""
    made = content([f"label {index:02}" for index in range(NAMED + 1)], images=10)
    found = lay_out(made)
    mistakes = {
        quality.label: quality.images - row[index]
        for index, (quality, row) in enumerate(
            zip(made.metrics.per_label, made.metrics.confusion, strict=True)
        )
    }
    coloured = [layer.label for layer in found.layers]
    assert len(coloured) == COLOURED == len({layer.shape for layer in found.layers})
    fewest = min(mistakes[label] for label in coloured)
    assert fewest >= max(count for label, count in mistakes.items() if label not in coloured)
    assert found.rest is not None
    assert found.rest.images == 10 * (NAMED + 1 - COLOURED)
    assert [name.text for name in found.names] == coloured


def test_the_map_is_bounded() -> None:
    """At most POINTS images are drawn, all inside the picture."""
    found = lay_out(content(images=embedding_map.POINTS // 2))
    assert found.shown == embedding_map.POINTS
    starts = [
        tuple(map(float, mark.split("m")[0].split()))
        for layer in found.layers
        for mark in layer.marks.split("M")[1:]
    ]
    x, y = np.array(starts).T
    assert x.min() >= 0
    assert x.max() <= embedding_map.WIDTH
    assert y.min() >= 0
    assert y.max() <= embedding_map.HEIGHT


def test_names_do_not_cover_each_other() -> None:
    """Names with the same position are moved apart and stay inside the picture."""
    names = [(f"name {index}", index, 50.0, 50.0) for index in range(8)]
    placed = placement.place(names, width=400, height=300)
    lines = sorted(name.y for name in placed)
    assert np.diff(lines).min() >= placement.LINE
    assert all(0 < name.y < 300 for name in placed)


def test_long_names_are_cut() -> None:
    """A name of 100 characters is shortened on the map."""
    (placed,) = placement.place([("a" * 100, 0, 5.0, 5.0)], width=640, height=460)
    assert placed.text == "a" * (placement.LONGEST - 1) + "\N{HORIZONTAL ELLIPSIS}"
