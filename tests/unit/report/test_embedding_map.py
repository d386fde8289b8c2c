"""The map shows all classes, marks mistakes, and stays small."""

from __future__ import annotations

import numpy as np
from support.reports import content

from topwork.report import embedding_map, placement
from topwork.report.embedding_map import COLOURED, NAMED, lay_out, pick


def test_small_classes_are_not_crowded_out() -> None:
    """Of a large and a small class, all of the small one is picked, and the first of the large."""
    targets = np.array([0] * 100 + [1] * 5)
    assert pick(targets, 20).tolist() == [*range(15), *range(100, 105)]


def test_few_images_are_all_shown() -> None:
    """Below the limit every image is on the map."""
    found = lay_out(content())
    assert (found.shown, found.images) == (90, 90)
    assert sum(layer.marks.count("M") for layer in found.layers) == 90
    assert found.rest is None


def test_mistakes_have_rings() -> None:
    """There are as many rings as images that were called wrong."""
    made = content()
    wrong = sum(map(sum, made.metrics.confusion)) - sum(
        row[index] for index, row in enumerate(made.metrics.confusion)
    )
    assert lay_out(made).wrong.count("M") == wrong > 0


def test_many_labels_share_a_grey() -> None:
    """Of many labels those with the most mistakes have a colour, a shape and a name."""
    made = content([f"label {index:02}" for index in range(NAMED + 1)], images=10)
    found = lay_out(made)
    mistakes = {
        one.label: one.images - row[index]
        for index, (one, row) in enumerate(
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
    """Of more images than POINTS only so many are drawn, and inside the picture."""
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
    """Names that belong to the same place are moved apart, and stay in the picture."""
    names = [(f"name {index}", index, 50.0, 50.0) for index in range(8)]
    placed = placement.place(names, width=400, height=300)
    lines = sorted(one.y for one in placed)
    assert np.diff(lines).min() >= placement.LINE
    assert all(0 < one.y < 300 for one in placed)


def test_long_names_are_cut() -> None:
    """A name of 100 characters is shortened on the map; the legend has all of it."""
    (placed,) = placement.place([("a" * 100, 0, 5.0, 5.0)], width=640, height=460)
    assert placed.text == "a" * (placement.LONGEST - 1) + "\N{HORIZONTAL ELLIPSIS}"
