"""What exemplars alone say against training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars, make
from topwork.bundle.findings import Finding
from topwork.learning.audit import MOST_SUSPECTS, audit_exemplars, suspects
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
    """Return exemplars called 0, 1, ...; what is not given is random."""
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
    """Return a judgement that is right everywhere, with that confidence."""
    classes = len(exemplars.labels)
    probabilities = np.full((len(exemplars), classes), (1 - confidence) / (classes - 1))
    probabilities[np.arange(len(exemplars)), exemplars.targets] = confidence
    return Judged(rows=np.arange(len(exemplars)), probabilities=probabilities.astype(np.float32))


def _of(kind: str, findings: Sequence[Finding]) -> list[Finding]:
    return [one for one in findings if one.kind == kind]


def test_clean_images_have_no_findings() -> None:
    """Enough different images of each label, all told apart, are no matter."""
    exemplars = _exemplars(["a", "b"] * 50)
    assert audit_exemplars(exemplars, _judged(exemplars), seed=0) == []


def test_suspects_by_hand() -> None:
    """Row 3 is below its class's mean (0.675), while the other class reaches its own (0.8)."""
    probabilities = np.array(
        [[0.9, 0.1], [0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.2, 0.8]], dtype=np.float32
    )
    assert suspects(np.array([0, 0, 0, 0, 1, 1]), probabilities) == [(3, 1)]


def test_mere_doubt_is_no_suspicion() -> None:
    """A wrong answer that does not reach the other class's mean confidence is let pass."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.1, 0.9]], dtype=np.float32)
    assert suspects(np.array([0, 0, 1, 1]), probabilities) == []


def test_a_class_that_is_hardly_known_draws_no_suspicion() -> None:
    """A class that its own image does not look like has a low threshold; chances still count."""
    probabilities = np.array([[0.99, 0.01], [0.8, 0.2], [0.9, 0.1]], dtype=np.float32)
    assert suspects(np.array([0, 0, 1]), probabilities) == []


def test_an_unjudged_class_has_no_threshold_to_reach() -> None:
    """A label of which no image was judged is nobody's probable label."""
    probabilities = np.array([[0.6, 0.0, 0.4], [0.1, 0.0, 0.9]], dtype=np.float32)
    assert suspects(np.array([0, 0]), probabilities) == []


def test_changed_labels_are_found() -> None:
    """Of 300 exemplars 9 have changed labels: most of these are suspected, and no others."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    embeddings = (np.eye(12)[truth] * 3 + np.abs(rng.normal(0, 0.7, (300, 12)))).astype(np.float32)
    changed = rng.choice(300, 9, replace=False)
    given = truth.copy()
    given[changed] = (given[changed] + 1) % 3
    exemplars = _exemplars(["abc"[target] for target in given], embeddings=embeddings)
    findings = audit_exemplars(exemplars, learn(exemplars, seed=0).judged, seed=0)
    found = _of("suspected_label", findings)
    rows = [int(one.images[0]) for one in found]
    assert set(rows) <= set(changed.tolist())
    assert len(rows) >= 5
    row = rows[0]
    assert found[0].labels == ("abc"[given[row]], "abc"[truth[row]])
    assert f"{row} is labelled {'abc'[given[row]]!r}" in found[0].message


def test_the_list_of_suspects_is_bounded() -> None:
    """Beyond the most there is one finding with all other names, in the order of suspicion."""
    exemplars = _exemplars(["a", "b"] * 200)
    judged = _judged(exemplars)
    wrong = np.flatnonzero(exemplars.targets == 0)[: MOST_SUSPECTS + 30]
    judged.probabilities[wrong, 0] = np.linspace(0.01, 0.05, len(wrong))
    judged.probabilities[wrong, 1] = 1 - judged.probabilities[wrong, 0]
    findings = audit_exemplars(exemplars, judged, seed=0)
    assert [one.images[0] for one in _of("suspected_label", findings)] == [
        exemplars.names[row] for row in wrong[:MOST_SUSPECTS]
    ]
    (rest,) = _of("suspected_labels", findings)
    assert rest.images == tuple(exemplars.names[row] for row in wrong[MOST_SUSPECTS:])
    assert rest.message.startswith("30 more images")


def test_only_judged_rows_are_suspected() -> None:
    """A judgement of some rows names just these, though its rows are counted from 0."""
    exemplars = _exemplars(["a", "b"] * 50)
    whole = _judged(exemplars)
    rows = np.arange(40, 100)
    judged = Judged(rows=rows, probabilities=whole.probabilities[rows])
    judged.probabilities[7] = judged.probabilities[7, ::-1].copy()
    (found,) = _of("suspected_label", audit_exemplars(exemplars, judged, seed=0))
    assert found.images == (exemplars.names[47],)


def test_the_same_image_under_two_labels_is_a_warning() -> None:
    """It cannot be both; it is no near-duplicate on top of that."""
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
    """It says how many pairs fall into different folds."""
    prints = RNG.integers(0, 256, (60, 32), dtype=np.uint8)
    prints[1:20:2] = prints[0:20:2]
    exemplars = _exemplars(["a", "b"] * 30, prints=prints)
    (found,) = audit_exemplars(exemplars, None, seed=0)
    assert (found.kind, found.severity) == ("near_duplicates_across_labels", "warning")
    assert set(found.images) == {str(row) for row in range(20)}
    pairs = list(zip(found.images[::2], found.images[1::2], strict=True))
    assert all(int(other) == int(one) + 1 for one, other in pairs)
    folds = dict(zip(exemplars.names, exemplars.folds(0).tolist(), strict=True))
    apart = sum(folds[one] != folds[other] for one, other in pairs)
    assert 0 < apart < 10
    assert (
        f"10 pairs of near-duplicates bear different labels, 'a' and 'b'; {apart}" in found.message
    )


def test_near_duplicates_of_one_label_are_a_note_in_groups() -> None:
    """Three of one photo and two of another are two groups, each in a row."""
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


def test_a_label_of_one_photo_is_judged_badly_and_that_is_said() -> None:
    """40 versions of one photo fall into one fold: no head that judges them knew the label."""
    prints = RNG.integers(0, 256, (80, 32), dtype=np.uint8)
    prints[2:80:2] = prints[0]
    findings = audit_exemplars(_exemplars(["a", "b"] * 40, prints=prints), None, seed=0)
    (found,) = _of("uneven_folds", findings)
    assert (found.severity, found.labels) == ("warning", ("a",))
    assert found.message.startswith("40 of 40 images")


def test_imbalance_is_a_warning() -> None:
    """Ten times as many is too much, nine times is not."""
    (found,) = audit_exemplars(_exemplars(["a"] * 100 + ["b"] * 10), None, seed=0)
    assert (found.kind, found.severity, found.labels) == ("imbalance", "warning", ("a", "b"))
    assert "'a' has 100 images, 10 times as many as 'b' with 10" in found.message
    assert audit_exemplars(_exemplars(["a"] * 90 + ["b"] * 10), None, seed=0) == []


def test_few_images_make_wide_intervals() -> None:
    """20 images, all told apart: the accuracy may be 0.839, each recall 0.722."""
    exemplars = _exemplars(["a", "b"] * 10)
    findings = audit_exemplars(exemplars, _judged(exemplars), seed=0)
    (accuracy,) = _of("wide_interval", findings)
    assert accuracy.severity == "warning"
    assert "(20)" in accuracy.message
    assert "between 0.839 and 1.000" in accuracy.message
    (recall,) = _of("wide_recall", findings)
    assert (recall.severity, recall.labels) == ("note", ("a", "b"))
    assert "with 10 it lies between 0.722 and 1.000" in recall.message


def test_images_without_names_are_counted_all_the_same() -> None:
    """Nothing is named, nothing fails."""
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
