"""Data audit: findings from exemplars and cross-validated predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars, make
from topwork.bundle.findings import Finding
from topwork.learning.audit import MAX_SINGLE_SUSPECTS, audit_exemplars, suspects
from topwork.learning.learn import Judged, learn

RNG = np.random.default_rng(0)


def _exemplars(
    row_labels: Sequence[str],
    *,
    prints: NDArray[np.uint8] | None = None,
    digests: NDArray[np.uint8] | None = None,
    embeddings: NDArray[np.float32] | None = None,
    named: bool = True,
) -> Exemplars:
    """Return exemplars with the names 0, 1, ...; missing arguments are random."""
    rng = np.random.default_rng(len(row_labels))
    rows = len(row_labels)

    def noise() -> NDArray[np.uint8]:
        return rng.integers(0, 256, (rows, 32), dtype=np.uint8)

    return make(
        np.ones((rows, 4), dtype=np.float32) if embeddings is None else embeddings,
        noise() if digests is None else digests,
        noise() if prints is None else prints,
        row_labels,
        names=[str(row) for row in range(rows)] if named else None,
    )


def _judged(exemplars: Exemplars, confidence: float = 0.9) -> Judged:
    """Return correct predictions for all exemplars, with this confidence."""
    classes = len(exemplars.labels)
    probabilities = np.full((len(exemplars), classes), (1 - confidence) / (classes - 1))
    probabilities[np.arange(len(exemplars)), exemplars.targets] = confidence
    return Judged(rows=np.arange(len(exemplars)), probabilities=probabilities.astype(np.float32))


def _of(kind: str, findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def test_clean_images_have_no_findings() -> None:
    """Enough different and correctly classified images of each label give no finding."""
    exemplars = _exemplars(["a", "b"] * 50)
    assert audit_exemplars(exemplars, _judged(exemplars), seed=0) == []


def test_suspects_match_a_manual_example() -> None:
    """Row 3 is below its class's mean (0.675), while the other class reaches its own (0.8)."""
    probabilities = np.array(
        [[0.9, 0.1], [0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.2, 0.8]], dtype=np.float32
    )
    assert suspects(np.array([0, 0, 0, 0, 1, 1]), probabilities) == [(3, 1)]


def test_unconfident_mistake_is_not_suspected() -> None:
    """A wrong prediction below the other class's mean confidence is not suspected."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.1, 0.9]], dtype=np.float32)
    assert suspects(np.array([0, 0, 1, 1]), probabilities) == []


def test_class_with_a_low_threshold_causes_no_suspicion() -> None:
    """A class with a low threshold must still be more probable than the image's own class."""
    probabilities = np.array([[0.99, 0.01], [0.8, 0.2], [0.9, 0.1]], dtype=np.float32)
    assert suspects(np.array([0, 0, 1]), probabilities) == []


def test_class_without_evaluated_images_is_never_probable() -> None:
    """A label without an evaluated image is not proposed for other images."""
    probabilities = np.array([[0.6, 0.0, 0.4], [0.1, 0.0, 0.9]], dtype=np.float32)
    assert suspects(np.array([0, 0]), probabilities) == []


def test_changed_labels_are_found() -> None:
    """Of 9 changed labels among 300 exemplars most are suspected, and no others."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    embeddings = (np.eye(12)[truth] * 3 + np.abs(rng.normal(0, 0.7, (300, 12)))).astype(np.float32)
    changed = rng.choice(300, 9, replace=False)
    given = truth.copy()
    given[changed] = (given[changed] + 1) % 3
    exemplars = _exemplars(["abc"[target] for target in given], embeddings=embeddings)
    findings = audit_exemplars(exemplars, learn(exemplars, seed=0).judged, seed=0)
    found = _of("suspected_label", findings)
    rows = [int(finding.images[0]) for finding in found]
    assert set(rows) <= set(changed.tolist())
    assert len(rows) >= 5
    row = rows[0]
    assert found[0].labels == ("abc"[given[row]], "abc"[truth[row]])
    assert f"{row} is labelled {'abc'[given[row]]!r}" in found[0].message


def test_the_list_of_suspects_is_bounded() -> None:
    """Suspects beyond MAX_SINGLE_SUSPECTS share one finding, in the same order."""
    exemplars = _exemplars(["a", "b"] * 200)
    judged = _judged(exemplars)
    wrong = np.flatnonzero(exemplars.targets == 0)[: MAX_SINGLE_SUSPECTS + 30]
    judged.probabilities[wrong, 0] = np.linspace(0.01, 0.05, len(wrong))
    judged.probabilities[wrong, 1] = 1 - judged.probabilities[wrong, 0]
    findings = audit_exemplars(exemplars, judged, seed=0)
    assert [finding.images[0] for finding in _of("suspected_label", findings)] == [
        exemplars.names[row] for row in wrong[:MAX_SINGLE_SUSPECTS]
    ]
    (rest,) = _of("suspected_labels", findings)
    assert rest.images == tuple(exemplars.names[row] for row in wrong[MAX_SINGLE_SUSPECTS:])
    assert rest.message.startswith("30 more images")


def test_only_evaluated_rows_are_suspected() -> None:
    """Rows of the predictions are mapped to exemplars."""
    exemplars = _exemplars(["a", "b"] * 50)
    whole = _judged(exemplars)
    rows = np.arange(40, 100)
    judged = Judged(rows=rows, probabilities=whole.probabilities[rows])
    judged.probabilities[7] = judged.probabilities[7, ::-1].copy()
    (found,) = _of("suspected_label", audit_exemplars(exemplars, judged, seed=0))
    assert found.images == (exemplars.names[47],)


def test_the_same_image_under_two_labels_is_a_warning() -> None:
    """Identical pixels with two labels are a warning, and not also near-duplicates."""
    digests = RNG.integers(0, 256, (40, 32), dtype=np.uint8)
    prints = RNG.integers(0, 256, (40, 32), dtype=np.uint8)
    digests[1], prints[1] = digests[0], prints[0]
    exemplars = _exemplars(["a", "b"] * 20, digests=digests, prints=prints)
    findings = audit_exemplars(exemplars, None, seed=0)
    (found,) = findings
    assert (found.kind, found.severity) == ("several_labels", "warning")
    assert set(found.images) == {"0", "1"}
    assert found.labels == ("a", "b")


def test_near_duplicates_of_different_labels_are_a_warning() -> None:
    """The message has the number of pairs in different folds."""
    prints = RNG.integers(0, 256, (60, 32), dtype=np.uint8)
    prints[1:20:2] = prints[0:20:2]
    exemplars = _exemplars(["a", "b"] * 30, prints=prints)
    (found,) = audit_exemplars(exemplars, None, seed=0)
    assert (found.kind, found.severity) == ("near_duplicates_across_labels", "warning")
    assert set(found.images) == {str(row) for row in range(20)}
    pairs = list(zip(found.images[::2], found.images[1::2], strict=True))
    assert all(int(other) == int(first) + 1 for first, other in pairs)
    folds = dict(zip(exemplars.names, exemplars.folds(0).tolist(), strict=True))
    in_different_folds = sum(folds[first] != folds[other] for first, other in pairs)
    assert 0 < in_different_folds < 10
    assert (
        f"10 pairs of near-duplicates have different labels, 'a' and 'b'; {in_different_folds}"
        in found.message
    )


def test_near_duplicates_of_one_label_are_a_note() -> None:
    """Three copies of one photo and two of another are two groups, each listed together."""
    prints = RNG.integers(0, 256, (60, 32), dtype=np.uint8)
    prints[[2, 4]] = prints[0]
    prints[8] = prints[6]
    (found,) = audit_exemplars(_exemplars(["a", "b"] * 30, prints=prints), None, seed=0)
    assert (found.kind, found.severity, found.labels) == ("near_duplicates", "note", ("a",))
    groups = {frozenset(found.images[:3]), frozenset(found.images[3:])}
    halves = {frozenset(found.images[:2]), frozenset(found.images[2:])}
    assert {frozenset({"0", "2", "4"}), frozenset({"6", "8"})} in (groups, halves)
    assert "5 images labelled 'a' in 2 groups" in found.message
    assert "the largest has 3" in found.message


def test_label_of_copies_has_uneven_folds() -> None:
    """40 copies of one photo are in one fold: no head that evaluates them learnt the label."""
    prints = RNG.integers(0, 256, (80, 32), dtype=np.uint8)
    prints[2:80:2] = prints[0]
    findings = audit_exemplars(_exemplars(["a", "b"] * 40, prints=prints), None, seed=0)
    (found,) = _of("uneven_folds", findings)
    assert (found.severity, found.labels) == ("warning", ("a",))
    assert found.message.startswith("40 of 40 images")


def test_label_of_two_uneven_groups_has_uneven_folds() -> None:
    """A group with most images of a label makes its recall the recall of few training images."""
    made = _exemplars(["a", "b"] * 40)
    groups = np.zeros((80, 16), np.uint8)
    own = np.flatnonzero(made.targets == 0)
    groups[own] = 1
    groups[own[:3]] = 2
    findings = audit_exemplars(replace(made, groups=groups), None, seed=0)
    (found,) = _of("uneven_folds", findings)
    assert found.labels == ("a",)
    assert found.message.startswith("37 of 40 images labelled 'a' are in one fold")


def test_imbalance_is_a_warning() -> None:
    """A ratio of 10 is a warning, a ratio of 9 is not."""
    (found,) = audit_exemplars(_exemplars(["a"] * 100 + ["b"] * 10), None, seed=0)
    assert (found.kind, found.severity, found.labels) == ("imbalance", "warning", ("a", "b"))
    assert "'a' has 100 images, 10 times as many as 'b' with 10" in found.message
    assert audit_exemplars(_exemplars(["a"] * 90 + ["b"] * 10), None, seed=0) == []


def test_few_images_make_wide_intervals() -> None:
    """20 correct images have an interval from 0.839, the recall of 10 from 0.722."""
    exemplars = _exemplars(["a", "b"] * 10)
    findings = audit_exemplars(exemplars, _judged(exemplars), seed=0)
    (accuracy,) = _of("wide_interval", findings)
    assert accuracy.severity == "warning"
    assert "(20)" in accuracy.message
    assert "interval 0.839 to 1.000" in accuracy.message
    (recall,) = _of("wide_recall", findings)
    assert (recall.severity, recall.labels) == ("note", ("a", "b"))
    assert "'a' has fewest: 10, 95 % interval 0.722 to 1.000" in recall.message


def test_images_without_names_are_counted() -> None:
    """A finding about images without names has no images."""
    exemplars = _exemplars(["a", "b"] * 50, named=False)
    judged = _judged(exemplars)
    judged.probabilities[3] = judged.probabilities[3, ::-1].copy()
    (found,) = audit_exemplars(exemplars, judged, seed=0)
    assert found.images == ()
    assert found.message.startswith("an image is labelled")


@pytest.mark.parametrize("order", [1, 2])
def test_findings_do_not_depend_on_the_order_of_images(order: int) -> None:
    """The same images in another order give the same findings in the same order."""
    rng = np.random.default_rng(order)
    labels = np.array(["a", "b", "c"] * 40)
    prints = RNG.integers(0, 256, (120, 32), dtype=np.uint8)
    digests = RNG.integers(0, 256, (120, 32), dtype=np.uint8)
    prints[60:100] = prints[:40]

    def audited(rows: NDArray[np.int64]) -> list[Finding]:
        exemplars = make(
            np.ones((120, 4), dtype=np.float32),
            digests[rows],
            prints[rows],
            labels[rows].tolist(),
            names=[str(row) for row in rows],
        )
        return audit_exemplars(exemplars, _judged(exemplars), seed=0)

    straight = audited(np.arange(120))
    assert straight
    assert audited(rng.permutation(120)) == straight
