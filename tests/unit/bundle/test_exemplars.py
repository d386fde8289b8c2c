"""Exemplars are a set: what came when, and in which part, leaves no trace in them."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.bad_images import gradient
from support.pictures import encode

from topwork.bundle.duplicates import NEAR_DUPLICATE_BITS, fingerprint
from topwork.bundle.exemplars import (
    FOLDS,
    Exemplars,
    from_bytes,
    make,
    merge,
    to_bytes,
)
from topwork.bundle.image import preprocess
from topwork.bundle.preprocess import PreprocessSpec
from topwork.errors import Corrupt

SEEDED = settings(derandomize=True, database=None, deadline=None)
SPEC = PreprocessSpec(resize=64, crop=64)

Row = tuple[int, str]
"""An image, by number, and its label."""

ROWS = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["a", "b", "ä", "B"])), min_size=1)


def exemplars(rows: Sequence[Row]) -> Exemplars:
    """Return exemplars of images by number, from which all else that they have follows."""
    parts = [np.random.default_rng([1, number]) for number, _ in rows]
    return make(
        np.array([rng.normal(size=6) for rng in parts], dtype=np.float32),
        np.array([rng.integers(0, 256, 32) for rng in parts], dtype=np.uint8),
        np.array([rng.integers(0, 256, 32) for rng in parts], dtype=np.uint8),
        [label for _, label in rows],
    )


def numbered(count: int, label: str = "a", *, start: int = 0) -> list[Row]:
    """Return ``count`` different images of one label."""
    return [(number, label) for number in range(start, start + count)]


def folds_by_image(one: Exemplars, seed: int) -> dict[tuple[bytes, str], int]:
    """Return the fold of each image and label."""
    return {
        (digest.tobytes(), one.labels[target]): int(fold)
        for digest, target, fold in zip(one.digests, one.targets, one.folds(seed), strict=True)
    }


# The set


@settings(SEEDED, max_examples=80)
@given(ROWS)
def test_exemplars_are_sorted_and_each_is_kept_once(rows: list[Row]) -> None:
    """They are sorted by digest, then label; each image is there once under each of its labels."""
    made = exemplars(rows)
    found = [
        (digest.tobytes(), made.labels[target])
        for digest, target in zip(made.digests, made.targets, strict=True)
    ]
    alone = {row: exemplars([row]) for row in rows}
    assert found == sorted({(one.digests[0].tobytes(), row[1]) for row, one in alone.items()})
    assert made.labels == tuple(sorted({label for _, label in rows}))
    assert len(made) == len(set(rows)) == made.counts().sum()
    for one in alone.values():  # and what belongs to an image stays with it
        (at,) = [
            index
            for index, key in enumerate(found)
            if key == (one.digests[0].tobytes(), one.labels[0])
        ]
        assert (made.embeddings[at] == one.embeddings[0]).all()
        assert (made.fingerprints[at] == one.fingerprints[0]).all()


@settings(SEEDED, max_examples=80)
@given(ROWS, st.integers(0, 40), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_parts_does_not_matter(
    rows: list[Row], cut: int, random: Random
) -> None:
    """Shuffled rows in two parts, in either order, make a shard of equal bytes."""
    want = to_bytes(exemplars(rows))
    shuffled = list(rows)
    random.shuffle(shuffled)
    parts = [exemplars(part) for part in (shuffled[:cut], shuffled[cut:]) if part]
    assert to_bytes(merge(parts)) == want
    assert to_bytes(merge(parts[::-1])) == want


def test_the_same_pixels_under_two_labels_are_kept_twice() -> None:
    """One photo with two labels is two exemplars; with one label twice it is one."""
    made = exemplars([(7, "b"), (7, "a"), (7, "b")])
    assert len(made) == 2
    assert made.targets.tolist() == [0, 1]


def test_counts_are_in_label_order() -> None:
    """counts() has one entry a label, at the label's class index."""
    made = exemplars([*numbered(3, "b"), *numbered(1, "c"), *numbered(5, "a")])
    assert dict(zip(made.labels, made.counts(), strict=True)) == {"a": 5, "b": 3, "c": 1}


def test_the_data_digest_is_of_images_and_labels() -> None:
    """It changes with an image and with a label, and not with the order in which they came."""
    rows = [*numbered(4, "a"), *numbered(4, "b", start=4)]
    want = exemplars(rows).data_digest()
    assert exemplars(rows[::-1]).data_digest() == want
    assert exemplars([*rows[:-1], (7, "a")]).data_digest() != want
    assert exemplars([*rows[:-1], (8, "b")]).data_digest() != want
    assert exemplars(rows[:-1]).data_digest() != want


# Folds


def test_folds_are_of_about_equal_size() -> None:
    """Different photos fall into all folds alike."""
    counts = np.bincount(exemplars(numbered(2_000)).folds(0), minlength=FOLDS)
    assert len(counts) == FOLDS
    assert counts.min() > 2_000 / FOLDS - 4 * np.sqrt(2_000 * 0.16)  # 4 sigma


def test_another_seed_is_another_split() -> None:
    """The seed decides where a photo falls; the same seed decides alike."""
    made = exemplars(numbered(200))
    assert (made.folds(5) == made.folds(5)).all()
    assert (made.folds(5) != made.folds(6)).mean() > 0.5
    assert (made.folds(-5) != made.folds(5)).mean() > 0.5


@settings(SEEDED, max_examples=60)
@given(ROWS, ROWS, st.integers(-3, 3))
def test_adding_a_class_moves_no_old_exemplar(old: list[Row], new: list[Row], seed: int) -> None:
    """Old exemplars keep their folds when a label is added, even one with the same photos."""
    before = exemplars(old)
    after = merge([before, exemplars([(number, "new") for number, _ in new])])
    found = folds_by_image(after, seed)
    for key, fold in folds_by_image(before, seed).items():
        assert found[key] == fold


def variants(flips: Sequence[int], *, photos: int, labels: Sequence[str]) -> Exemplars:
    """Return photos of which each comes in versions whose fingerprints differ from the first one.

    Version v differs in the first ``flips[v]`` bits and has the label ``labels[v]``; its digest is
    its own and begins with the photo's number and the version's.
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
    """Return which photos have versions in different folds."""
    order = np.lexsort(made.digests[:, 1::-1].T)
    folds = made.folds(0)[order].reshape(-1, versions)
    return np.asarray((folds != folds[:, :1]).any(axis=1))


@pytest.mark.parametrize("flips", [[0, NEAR_DUPLICATE_BITS], [0, 0, 0], [0, 15, 30, 45, 60]])
def test_near_duplicates_share_a_fold(flips: list[int]) -> None:
    """Versions of one photo, also where only a chain of them connects two, share its fold."""
    made = variants(flips, photos=60, labels=["a"] * len(flips))
    assert len(set(made.folds(0))) == FOLDS
    assert not splits(made, len(flips)).any()


def test_near_duplicates_under_a_new_label_move_nothing() -> None:
    """Old exemplars keep their folds when a label with near-duplicates of them is added."""
    both = variants([0, 5], photos=60, labels=["new", "old"])  # the new ones sort first
    rows = np.flatnonzero(both.targets == both.labels.index("old"))
    old = make(both.embeddings[rows], both.digests[rows], both.fingerprints[rows], ["old"] * 60)
    assert (both.folds(0)[rows] == old.folds(0)).all()


def test_photos_that_differ_more_are_split() -> None:
    """Photos that differ in one bit more than near-duplicates do are different photos."""
    made = variants([0, NEAR_DUPLICATE_BITS + 1], photos=60, labels=["a", "a"])
    assert 0.6 < splits(made, 2).mean() < 0.95  # 4 of 5 by chance


def test_many_rows_are_compared_across_blocks() -> None:
    """Near-duplicates are found wherever they stand among thousands of rows."""
    made = variants([0, 5], photos=200, labels=["a", "a"])
    rest = exemplars(numbered(3_000))
    rest = make(np.zeros((3_000, 1), np.float32), rest.digests, rest.fingerprints, ["a"] * 3_000)
    found = folds_by_image(merge([made, rest]), 0)
    folds = [found[digest.tobytes(), "a"] for digest in made.digests]
    assert folds[::2] == folds[1::2]
    assert len(set(folds)) == FOLDS


# Fingerprints


def scene(seed: int) -> Image.Image:
    """Return a smooth picture that resembles no other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((360, 270), Image.Resampling.BICUBIC)


def bits(content: bytes) -> NDArray[np.uint8]:
    """Return a file's fingerprint, 256 bits."""
    found = fingerprint(preprocess(content, SPEC))
    assert found.shape == (32,)
    assert found.dtype == np.uint8
    return np.unpackbits(found)


def test_copies_of_a_photo_are_near_duplicates() -> None:
    """A photo that was recompressed, scaled or darkened a little keeps its fingerprint, almost."""
    for seed in range(12):
        original = bits(encode(scene(seed), "JPEG", quality=95))
        copies = [
            encode(scene(seed), "JPEG", quality=40),
            encode(scene(seed).resize((240, 180)), "WEBP"),
            encode(scene(seed).point(lambda value: value * 0.9 + 5), "JPEG"),
        ]
        apart = [(bits(copy) != original).sum() for copy in copies]
        assert max(apart) <= NEAR_DUPLICATE_BITS


def test_different_photos_are_no_near_duplicates() -> None:
    """Different pictures differ in far more bits."""
    found = [bits(encode(scene(seed), "JPEG")) for seed in range(15)]
    apart = [(one != other).sum() for one, other in combinations(found, 2)]
    assert min(apart) > 2 * NEAR_DUPLICATE_BITS


def test_a_bit_says_that_brightness_rises_to_the_right() -> None:
    """A picture that brightens to the right has all bits set, its mirror image none."""
    grey = gradient(64, 64).getchannel(0)
    rising = np.asarray(Image.merge("RGB", (grey, grey, grey)))
    assert fingerprint(rising).tolist() == [255] * 32
    assert fingerprint(rising[:, ::-1].copy()).tolist() == [0] * 32


# Shards


@settings(SEEDED, max_examples=40)
@given(ROWS)
def test_a_shard_gives_the_exemplars_back(rows: list[Row]) -> None:
    """Every array comes back equal and with its type, and the labels too."""
    made = exemplars(rows)
    read = from_bytes(to_bytes(made))
    for name in ("embeddings", "digests", "fingerprints", "targets"):
        before, after = getattr(made, name), getattr(read, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    assert read.labels == made.labels


def test_equal_exemplars_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard does not depend on when it was made: its digest names what is in it."""
    made = exemplars(numbered(10))
    first = to_bytes(made)
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 1e6)
        assert to_bytes(exemplars(numbered(10))) == first


def archive(**changes: NDArray[np.generic]) -> bytes:
    """Return a shard in which arrays are replaced."""
    with np.load(io.BytesIO(to_bytes(exemplars(numbered(3))))) as arrays:
        content = {**arrays, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def flipped(at: int, *, bit: int = 0x55) -> bytes:
    """Return a shard with one byte changed."""
    content = bytearray(to_bytes(exemplars(numbered(3))))
    content[at] ^= bit
    return bytes(content)


def saved(array: NDArray[np.generic]) -> bytes:
    """Return one array as a file, which is no archive."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


WHOLE = to_bytes(exemplars(numbered(3)))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(archive(labels=np.array([{"a": 1}], dtype=object)), id="pickled objects"),
        pytest.param(b"no shard at all", id="garbage"),
        pytest.param(WHOLE[: len(WHOLE) // 2], id="cut off"),
        pytest.param(WHOLE.replace(b"targets", b"tarrets"), id="an array is missing"),
        pytest.param(flipped(WHOLE.index(b"NUMPY") + 150), id="a byte was changed"),
        pytest.param(b"", id="empty"),
        pytest.param(saved(np.zeros(3)), id="no archive"),
        pytest.param(flipped(WHOLE.index(b"PK\1\2") + 8, bit=1), id="encrypted"),
        pytest.param(archive(embeddings=np.zeros(())), id="embeddings as a number"),
        pytest.param(archive(embeddings=np.zeros(3, np.float32)), id="embeddings as a row"),
        pytest.param(archive(targets=np.zeros(2, np.int64)), id="few targets"),
        pytest.param(archive(targets=np.full(3, 9)), id="unknown class"),
        pytest.param(archive(digests=np.zeros((3, 32))), id="digests as floats"),
        pytest.param(archive(names=np.array(["a", "b"])), id="few names"),
        pytest.param(archive(thumbnail_ends=np.array([4])), id="few thumbnails"),
    ],
)
def test_what_is_no_shard_is_corrupt(content: bytes) -> None:
    """Anything else than a shard is Corrupt, and nothing in it is ever unpickled."""
    with pytest.raises(Corrupt, match="shard of exemplars"):
        from_bytes(content)
