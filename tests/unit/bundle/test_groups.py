"""Groups of images: their ids, and folds that keep them whole."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS, Exemplars, make, merge, split
from topwork.bundle.groups import GROUP_BYTES, group_id

Row = tuple[str, str]
"""Label and group; an empty group is none."""

ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["", "p1", "p2", "p3", "p4", "p5", "p6"])),
    min_size=1,
    max_size=60,
)


def exemplars(rows: Sequence[Row], *, first: int = 0, copies: int = 1) -> Exemplars:
    """Return an exemplar per row; ``copies`` rows in turn are near-duplicates."""
    rng = np.random.default_rng(first)
    digests = rng.integers(0, 256, (len(rows), 32), dtype=np.uint8)
    prints = rng.integers(0, 256, (len(rows), 32), dtype=np.uint8)
    return make(
        np.zeros((len(rows), 1), np.float32),
        digests,
        prints[np.arange(len(rows)) // copies],
        [label for label, _ in rows],
        names=[f"{group}/{number}" for number, (_, group) in enumerate(rows)],
        groups=np.array([list(group_id(group)) for _, group in rows], np.uint8),
    )


def folds_of_groups(made: Exemplars, seed: int = 0) -> dict[str, set[int]]:
    """Return the folds of each group by its name, which is part of the exemplars' names."""
    found: dict[str, set[int]] = {}
    for name, fold in zip(made.names, made.folds(seed).tolist(), strict=True):
        found.setdefault(name.partition("/")[0], set()).add(fold)
    return found


def folds_by_image(made: Exemplars) -> dict[bytes, int]:
    """Return the fold of each image."""
    folds = made.folds(0).tolist()
    return {digest.tobytes(): fold for digest, fold in zip(made.digests, folds, strict=True)}


def test_id_is_that_of_the_composed_name() -> None:
    """Two Unicode forms of a name are one group; no name is no group."""
    assert group_id("caf\u00e9") == group_id(unicodedata.normalize("NFD", "caf\u00e9"))
    assert group_id("p1") != group_id("p2")
    assert group_id("") == bytes(GROUP_BYTES)
    assert len(group_id("p1")) == GROUP_BYTES


@pytest.mark.slow
@settings(max_examples=80)
@given(ROWS, st.integers(-2, 2))
def test_a_group_shares_a_fold(rows: list[Row], seed: int) -> None:
    """All images of a group are in one fold, whatever their labels."""
    folds = folds_of_groups(exemplars(rows), seed)
    assert all(len(found) == 1 for group, found in folds.items() if group)


@pytest.mark.parametrize("groups", [2, 3, 5, 12])
def test_few_groups_are_in_different_folds(groups: int) -> None:
    """As many folds as possible are used, and each class has images in them."""
    rows = [(label, f"p{number % groups}") for label in "ab" for number in range(60)]
    made = exemplars(rows)
    folds = made.folds(0)
    for target in range(2):
        counts = Counter(folds[made.targets == target].tolist())
        assert len(counts) == min(groups, FOLDS)
        assert max(counts.values()) <= 60 / groups * (1 + groups // FOLDS)


def test_groups_of_each_class_are_spread() -> None:
    """Groups that have images of one class only are spread class by class."""
    rows = [(label, f"{label}{number % 5}") for label in "abcd" for number in range(20)]
    made = exemplars(rows)
    for target in range(4):
        assert set(made.folds(0)[made.targets == target].tolist()) == set(range(FOLDS))


def test_near_duplicates_connect_groups() -> None:
    """Groups that contain near-duplicates of each other share a fold, and ungrouped copies, too."""
    rows = [("a", "p1"), ("a", "p2"), ("a", "p3"), ("a", "")] + [("b", f"q{n}") for n in range(20)]
    made = exemplars(rows, copies=2)
    assert folds_of_groups(made)["p1"] == folds_of_groups(made)["p2"]
    found = dict(zip(made.names, made.folds(0).tolist(), strict=True))
    assert found["p3/2"] == found["/3"]


@pytest.mark.slow
@settings(max_examples=60)
@given(ROWS, st.integers(1, 30))
def test_a_new_class_without_groups_moves_no_image(rows: list[Row], count: int) -> None:
    """AddClass sends no groups: old images keep their folds."""
    before = exemplars(rows)
    added = exemplars([("new", "")] * count, first=1)
    after = folds_by_image(merge([*split(before), *split(added)]))
    assert folds_by_image(before).items() <= after.items()


def test_without_groups_folds_are_as_before() -> None:
    """An exemplar without a group keeps its fold if others get groups."""
    rows = [("a", "")] * 30 + [("a", "p1"), ("a", "p2")] * 10
    made = exemplars(rows)
    plain = replace(made, groups=np.zeros_like(made.groups))
    alone = ~made.groups.any(axis=1)
    assert (made.folds(0)[alone] == plain.folds(0)[alone]).all()
    assert made.count_groups() == 2
    assert plain.count_groups() == 0


def test_seen_images_have_no_fold() -> None:
    """Images of fine-tuning are not evaluated, even in a group."""
    made = exemplars([("a", "p1"), ("a", "p2"), ("b", "p1"), ("b", "p2")])
    seen: NDArray[np.bool_] = np.array([True, False, False, True])
    assert (made.folds(0) >= 0).all()
    assert (replace(made, seen=seen).folds(0) < 0).tolist() == seen.tolist()


def test_groups_survive_shards_and_duplicates() -> None:
    """Of duplicates one with a group wins, in any order of the shards."""
    made = exemplars([("a", "p1"), ("a", "p2"), ("b", "p1")])
    again = replace(made, groups=np.zeros_like(made.groups), names=("", "", ""))
    for parts in ([made, again], [again, made]):
        merged = merge([pair for part in parts for pair in split(part)])
        assert (merged.groups == made.groups).all()
        assert merged.names == made.names


@pytest.mark.slow
def test_many_groups_take_seconds() -> None:
    """50,000 groups are balanced over the folds."""
    rows = [("abcd"[number % 4], f"p{number // 2}") for number in range(100_000)]
    made = replace(exemplars(rows), fingerprints=exemplars(rows, first=2).fingerprints)
    counts = Counter(made.folds(0).tolist())
    assert max(counts.values()) - min(counts.values()) <= 2
