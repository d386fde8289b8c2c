"""Index of a revision's examples: the predictions and places that the report is made of."""

from __future__ import annotations

import numpy as np
import pytest
from support.reports import FLOWERS, content

from topwork.bundle.examples import RANKED, ExampleIndex
from topwork.bundle.exemplars import ShardRows
from topwork.learning.learn import Judged
from topwork.report.content import Content
from topwork.training.examples import index_examples


def index_of(made: Content, judged: Judged | None = None) -> ExampleIndex:
    """Return the index of a report's examples."""
    sources = ShardRows.of_split(made.exemplars)
    return index_examples(made.exemplars, judged or made.judged, 0, sources, made.places)


def test_highest_probabilities_are_in_order() -> None:
    """The first is the prediction; none that is left out is higher than the last."""
    made = content([*FLOWERS, "iris", "lily"])
    index, probabilities = index_of(made), made.judged.probabilities
    np.testing.assert_array_equal(index.ranked[:, 0], probabilities.argmax(axis=1))
    ranked = np.take_along_axis(probabilities, index.ranked.astype(np.int64), axis=1)
    np.testing.assert_array_equal(index.ranked_probabilities, ranked)
    np.testing.assert_array_equal(ranked, -np.sort(-probabilities, axis=1)[:, :RANKED])


def test_predictions_give_the_confusion_matrix_of_the_metrics() -> None:
    """So the cells of the console's matrix have as many photos as it says."""
    made = content()
    index = index_of(made)
    confusion = np.zeros((3, 3), dtype=np.int64)
    np.add.at(confusion, (index.targets, index.ranked[:, 0]), 1)
    assert confusion.tolist() == [list(row) for row in made.metrics.confusion]


@pytest.mark.parametrize("labels", [1, 2])
def test_fewer_labels_leave_places_empty(labels: int) -> None:
    """Two labels have two probabilities."""
    index = index_of(content(FLOWERS[:labels], mistakes=0))
    assert (index.ranked[:, :labels] >= 0).all()
    assert (index.ranked[:, labels:] == -1).all()
    assert np.isnan(index.ranked_probabilities[:, labels:]).all()


def test_examples_that_were_not_evaluated_have_no_predictions() -> None:
    """As the photos that a backbone was fine-tuned on."""
    made = content()
    judged = Judged(rows=made.judged.rows[10:], probabilities=made.judged.probabilities[10:])
    index = index_of(made, judged)
    assert (index.ranked[:10] == -1).all()
    assert (index.ranked[10:, 0] >= 0).all()


def test_places_are_those_of_the_report() -> None:
    """An example that the map, a sample, leaves out has none."""
    made = content(images=1500)
    index = index_of(made)
    shown = ~np.isnan(index.points[:, 0])
    np.testing.assert_array_equal(np.flatnonzero(shown), made.places.rows)
    np.testing.assert_allclose(index.points[shown], made.places.points, atol=1e-6)
    assert index.points[shown].min() == 0
    assert index.points[shown].max() == 1
