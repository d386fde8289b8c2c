"""Exemplars: order independence, deduplication, folds and fingerprints."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import combinations, permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.bad_images import gradient
from support.pictures import encode

from topwork.bundle.exemplars import (
    FOLDS,
    Exemplars,
    make,
    merge,
    split,
)
from topwork.bundle.shards import Shard
from topwork.errors import Corrupt
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS, fingerprint
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec

SPEC = PreprocessSpec(resize=64, crop=64)

Row = tuple[int, str]
"""Image number and label."""

ROWS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["a", "b", "ä", "B"])), min_size=1)


def exemplars(rows: Sequence[Row]) -> Exemplars:
    """Return exemplars whose fields are derived from the image numbers."""
    parts = [np.random.default_rng([1, number]) for number, _ in rows]
    return make(
        np.array([rng.normal(size=6) for rng in parts], dtype=np.float32),
        np.array([rng.integers(0, 256, 32) for rng in parts], dtype=np.uint8),
        np.array([rng.integers(0, 256, 32) for rng in parts], dtype=np.uint8),
        [label for _, label in rows],
        contents=np.array([rng.integers(0, 256, 32) for rng in parts], dtype=np.uint8),
        names=[f"photo {number}" for number, _ in rows],
        thumbnails=[b"x" * (number % 3) for number, _ in rows],
    )


def equal(left: Exemplars, right: Exemplars) -> bool:
    """Return True if all fields and dtypes are equal."""
    return all(
        a.dtype == b.dtype and np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in (
            (getattr(left, field.name), getattr(right, field.name)) for field in fields(Exemplars)
        )
    )


def numbered(count: int, label: str = "a", *, start: int = 0) -> list[Row]:
    """Return ``count`` different images of one label."""
    return [(number, label) for number in range(start, start + count)]


def folds_by_image(made: Exemplars, seed: int) -> dict[tuple[bytes, str], int]:
    """Return the fold of each pair of image and label."""
    return {
        (digest.tobytes(), made.labels[target]): int(fold)
        for digest, target, fold in zip(made.digests, made.targets, made.folds(seed), strict=True)
    }


# The set


@pytest.mark.slow
@settings(max_examples=80)
@given(ROWS)
def test_exemplars_are_sorted_and_unique(rows: list[Row]) -> None:
    """Exemplars are sorted by digest, then label, with one row per image and label."""
    made = exemplars(rows)
    found = [
        (digest.tobytes(), made.labels[target])
        for digest, target in zip(made.digests, made.targets, strict=True)
    ]
    alone = {row: exemplars([row]) for row in rows}
    assert found == sorted({(single.digests[0].tobytes(), row[1]) for row, single in alone.items()})
    assert made.labels == tuple(sorted({label for _, label in rows}))
    assert len(made) == len(set(rows)) == made.counts().sum()
    for single in alone.values():  # all fields of an image are in the same row
        at = found.index((single.digests[0].tobytes(), single.labels[0]))
        assert (made.embeddings[at] == single.embeddings[0]).all()
        assert (made.fingerprints[at] == single.fingerprints[0]).all()


@pytest.mark.slow
@settings(max_examples=80)
@given(ROWS, st.integers(0, 40), st.randoms(use_true_random=False))
def test_order_of_rows_and_shards_does_not_matter(
    rows: list[Row], cut: int, random: Random
) -> None:
    """Shuffled rows, split into two sets of shards in any order, give equal exemplars."""
    want = exemplars(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    parts = [
        part for some in (shuffled[:cut], shuffled[cut:]) if some for part in split(exemplars(some))
    ]
    random.shuffle(parts)
    assert equal(merge(parts), want)


def copies(order: Sequence[int]) -> Exemplars:
    """Return the exemplars of four versions of one image, added in the given order."""
    seen = np.array([False, True, True, True])[list(order)]
    names = [["a", "c", "b", "b"][version] for version in order]
    contents = np.array([[version] * 32 for version in (1, 2, 4, 3)], dtype=np.uint8)[list(order)]
    same = np.zeros((4, 32), np.uint8)
    thumbnails = [bytes([version]) for version in order]
    return make(
        np.zeros((4, 1), np.float32),
        same,
        same,
        ["a"] * 4,
        contents=contents,
        seen=seen,
        names=names,
        thumbnails=thumbnails,
    )


def test_the_same_duplicate_wins_in_any_order() -> None:
    """A seen image wins over others, then the first name, then the smallest content."""
    for order in permutations(range(4)):
        kept = copies(order)
        assert kept.seen.tolist() == [True]
        assert kept.names == ("b",)
        assert kept.contents[0, 0] == 3
        assert kept.thumbnails == (bytes([3]),)


@settings(max_examples=40)
@given(ROWS)
def test_merge_is_the_inverse_of_split(rows: list[Row]) -> None:
    """Split gives one shard per label, and merging them gives equal exemplars."""
    made = exemplars(rows)
    parts = split(made)
    assert [label for label, _ in parts] == list(made.labels)
    assert [len(shard) for _, shard in parts] == made.counts().tolist()
    assert equal(merge(parts), made)


@pytest.mark.slow
@settings(max_examples=40)
@given(ROWS, st.randoms(use_true_random=False))
def test_where_equals_exemplars_of_the_selected_rows(rows: list[Row], random: Random) -> None:
    """Rows selected by a mask equal exemplars of these rows, without unused labels."""
    made = exemplars(rows)
    mask = np.array([random.random() < 0.5 for _ in range(len(made))])
    numbers = {exemplars([row]).digests[0].tobytes(): row[0] for row in rows}
    selected = [
        (numbers[made.digests[row].tobytes()], made.labels[made.targets[row]])
        for row in np.flatnonzero(mask)
    ]
    if selected:
        assert equal(made.where(mask), exemplars(selected))
    else:
        assert made.where(mask).labels == ()


def test_shard_can_be_merged_under_another_label() -> None:
    """A shard merged under another label equals exemplars created with that label."""
    parts = split(exemplars([*numbered(5, "a"), *numbered(5, "b", start=5)]))
    renamed = merge([("c" if label == "a" else label, shard) for label, shard in parts])
    assert equal(renamed, exemplars([*numbered(5, "c"), *numbered(5, "b", start=5)]))


def test_merge_of_different_widths_is_corrupt() -> None:
    """Embeddings of different widths are Corrupt; the message has both widths."""
    ((_, shard),) = split(exemplars(numbered(3)))
    narrow = replace(shard, embeddings=shard.embeddings[:, :4])
    with pytest.raises(Corrupt, match=r"\[4, 6\]"):
        merge([("a", shard), ("b", narrow)])


def test_merge_copies_embeddings_once() -> None:
    """The peak memory of a merge is the result plus the embeddings of one shard."""
    rng = np.random.default_rng(0)
    parts: list[tuple[str, Shard]] = []
    for part in range(20):
        ((label, shard),) = split(exemplars(numbered(100, start=100 * part)))
        wide = rng.normal(size=(100, 2_000)).astype(np.float32)
        parts.append((label, replace(shard, embeddings=wide)))
    tracemalloc.start()
    merged = merge(parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < merged.embeddings.nbytes * 1.1  # a shard is a twentieth


def test_image_with_two_labels_is_two_exemplars() -> None:
    """An image with two labels is two exemplars; a duplicate with the same label is one."""
    made = exemplars([(7, "b"), (7, "a"), (7, "b")])
    assert len(made) == 2
    assert made.targets.tolist() == [0, 1]


def test_counts_are_in_label_order() -> None:
    """counts() has one entry per label, at its class index."""
    made = exemplars([*numbered(3, "b"), *numbered(1, "c"), *numbered(5, "a")])
    assert dict(zip(made.labels, made.counts(), strict=True)) == {"a": 5, "b": 3, "c": 1}


def test_data_digest_depends_on_images_and_labels() -> None:
    """The digest changes with an image or a label, but not with their order."""
    rows = [*numbered(4, "a"), *numbered(4, "b", start=4)]
    want = exemplars(rows).data_digest()
    assert exemplars(rows[::-1]).data_digest() == want
    assert exemplars([*rows[:-1], (7, "a")]).data_digest() != want
    assert exemplars([*rows[:-1], (8, "b")]).data_digest() != want
    assert exemplars(rows[:-1]).data_digest() != want


# Folds


@pytest.mark.parametrize("photos", [1, 2, 5, 7, 2_000])
def test_each_label_has_its_share_of_each_fold(photos: int) -> None:
    """The photos of a label are distributed evenly over the folds, however few there are."""
    made = exemplars([*numbered(photos), *numbered(40, "b")])
    folds = made.folds(0)
    counts = np.bincount(folds[made.targets == 0], minlength=FOLDS)
    assert counts.max() - counts.min() == (photos % FOLDS > 0)
    assert (np.bincount(folds[made.targets == 1]) == 8).all()


def test_labels_begin_with_different_folds() -> None:
    """Labels of a single photo are distributed over the folds, too."""
    made = exemplars([(number, f"label {number}") for number in range(300)])
    counts = np.bincount(made.folds(0), minlength=FOLDS)
    assert counts.min() > 300 / FOLDS - 4 * np.sqrt(300 * 0.16)  # 4 sigma


def test_folds_do_not_depend_on_the_name_of_a_label() -> None:
    """A renamed class is evaluated as before."""
    before, after = exemplars(numbered(30, "a")), exemplars(numbered(30, "z"))
    assert (before.folds(3) == after.folds(3)).all()


def test_folds_depend_on_the_seed() -> None:
    """The same seed gives the same folds, another seed gives others."""
    made = exemplars(numbered(200))
    assert (made.folds(5) == made.folds(5)).all()
    assert (made.folds(5) != made.folds(6)).mean() > 0.5
    assert (made.folds(-5) != made.folds(5)).mean() > 0.5


@pytest.mark.slow
@settings(max_examples=60)
@given(ROWS, ROWS, st.integers(-3, 3))
def test_new_class_does_not_change_old_folds(old: list[Row], new: list[Row], seed: int) -> None:
    """Old exemplars keep their folds when a label is added, even one with the same photos."""
    before = exemplars(old)
    added = exemplars([(number, "new") for number, _ in new])
    after = merge([*split(before), *split(added)])
    found = folds_by_image(after, seed)
    for key, fold in folds_by_image(before, seed).items():
        assert found[key] == fold


def variants(flips: Sequence[int], *, photos: int, labels: Sequence[str]) -> Exemplars:
    """Return photos in several versions, which differ in fingerprint and digest.

    The fingerprint of version v differs in the first ``flips[v]`` bits; its label is ``labels[v]``,
    and its digest starts with the numbers of photo and version.
    """
    rng = np.random.default_rng(3)
    digests, prints = [], []
    for photo in range(photos):
        first = rng.integers(0, 2, 256, dtype=np.uint8)
        for version, flipped in enumerate(flips):
            other = first.copy()
            other[:flipped] ^= 1
            prints.append(np.packbits(other))
            tail = rng.integers(0, 256, 30, dtype=np.uint8)
            digests.append(np.concatenate([np.array([photo, version], dtype=np.uint8), tail]))
    rows = len(digests)
    return make(
        np.zeros((rows, 1), np.float32), np.array(digests), np.array(prints), [*labels] * photos
    )


def splits(made: Exemplars, versions: int) -> NDArray[np.bool_]:
    """Return a mask of the photos whose versions are in different folds."""
    order = np.lexsort(made.digests[:, 1::-1].T)
    folds = made.folds(0)[order].reshape(-1, versions)
    return np.asarray((folds != folds[:, :1]).any(axis=1))


@pytest.mark.parametrize("flips", [[0, NEAR_DUPLICATE_BITS], [0, 0, 0], [0, 15, 30, 45, 60]])
def test_near_duplicates_share_a_fold(flips: list[int]) -> None:
    """All versions of a photo share a fold, even if only a chain of versions connects them."""
    made = variants(flips, photos=60, labels=["a"] * len(flips))
    assert len(set(made.folds(0))) == FOLDS
    assert not splits(made, len(flips)).any()


def test_near_duplicates_with_a_new_label_do_not_change_old_folds() -> None:
    """Old exemplars keep their folds if a new label has near-duplicates of them."""
    both = variants([0, 5], photos=60, labels=["new", "old"])  # the new label sorts first
    rows = np.flatnonzero(both.targets == both.labels.index("old"))
    old = make(both.embeddings[rows], both.digests[rows], both.fingerprints[rows], ["old"] * 60)
    assert (both.folds(0)[rows] == old.folds(0)).all()


def test_photos_beyond_the_near_duplicate_limit_are_split() -> None:
    """Photos that differ in one bit more than near-duplicates are assigned independently."""
    made = variants([0, NEAR_DUPLICATE_BITS + 1], photos=60, labels=["a", "a"])
    assert 0.6 < splits(made, 2).mean() < 0.95  # 4 of 5 by chance


@pytest.mark.slow
def test_near_duplicates_are_found_across_blocks() -> None:
    """Near-duplicates share a fold even if thousands of rows are between them."""
    made = variants([0, 5], photos=200, labels=["a", "a"])
    rest = exemplars(numbered(3_000))
    rest = make(np.zeros((3_000, 1), np.float32), rest.digests, rest.fingerprints, ["a"] * 3_000)
    found = folds_by_image(merge([*split(made), *split(rest)]), 0)
    folds = [found[digest.tobytes(), "a"] for digest in made.digests]
    assert folds[::2] == folds[1::2]
    assert len(set(folds)) == FOLDS


# Fingerprints


def scene(seed: int) -> Image.Image:
    """Return a smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((360, 270), Image.Resampling.BICUBIC)


def bits(content: bytes) -> NDArray[np.uint8]:
    """Return the 256 bits of an image's fingerprint."""
    found = fingerprint(preprocess(content, SPEC))
    assert found.shape == (32,)
    assert found.dtype == np.uint8
    return np.unpackbits(found)


def test_copies_of_a_photo_are_near_duplicates() -> None:
    """A recompressed, scaled or darkened copy has a fingerprint within the near-duplicate limit."""
    for seed in range(12):
        original = bits(encode(scene(seed), "JPEG", quality=95))
        copies = [
            encode(scene(seed), "JPEG", quality=40),
            encode(scene(seed).resize((240, 180)), "WEBP"),
            encode(scene(seed).point(lambda value: value * 0.9 + 5), "JPEG"),
        ]
        distances = [(bits(copy) != original).sum() for copy in copies]
        assert max(distances) <= NEAR_DUPLICATE_BITS


def test_different_photos_are_no_near_duplicates() -> None:
    """Fingerprints of different pictures differ in many more bits."""
    found = [bits(encode(scene(seed), "JPEG")) for seed in range(15)]
    distances = [(a != b).sum() for a, b in combinations(found, 2)]
    assert min(distances) > 2 * NEAR_DUPLICATE_BITS


def test_fingerprint_bit_is_set_if_brightness_rises_to_the_right() -> None:
    """A picture that brightens to the right has all bits set, its mirror image none."""
    grey = gradient(64, 64).getchannel(0)
    rising = np.asarray(Image.merge("RGB", (grey, grey, grey)))
    assert fingerprint(rising).tolist() == [255] * 32
    assert fingerprint(rising[:, ::-1].copy()).tolist() == [0] * 32
