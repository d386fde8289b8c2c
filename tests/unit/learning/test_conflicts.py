"""Label conflicts: exact duplicates and near-duplicates of new images among exemplars."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from topwork.bundle.exemplars import Exemplars, make, shard_of
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS
from topwork.inputs.thumbnail import thumbnail
from topwork.learning.conflicts import (
    BLOCK,
    MAX_LABELS,
    KnownExemplars,
    LabelConflict,
    find_conflicts,
)

Bytes = NDArray[np.uint8]


def rows(
    label: str,
    prints: Bytes,
    *,
    digests: Bytes | None = None,
    thumbnails: Sequence[bytes] | None = None,
    prefix: str = "",
) -> Exemplars:
    """Return exemplars of one label, named by ``prefix`` (default: the label) and a number."""
    count = len(prints)
    rng = np.random.default_rng([count, *label.encode()])
    return make(
        np.zeros((count, 1), dtype=np.float32),
        rng.integers(0, 256, (count, 32), dtype=np.uint8) if digests is None else digests,
        prints,
        [label] * count,
        names=[f"{prefix or label}{row}" for row in range(count)],
        thumbnails=thumbnails,
    )


def known(*parts: Exemplars) -> KnownExemplars:
    """Return the known exemplars of parts with one label each."""
    return KnownExemplars.of([(part.labels[0], shard_of(part, part.labels[0])) for part in parts])


def conflicts_of(new: Exemplars, old: KnownExemplars, label: str) -> tuple[LabelConflict, ...]:
    """Return the conflicts of exemplars of one label."""
    return find_conflicts(shard_of(new, new.labels[0]), old, label)


def noise(count: int, seed: int) -> Bytes:
    """Return unrelated fingerprints or digests."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def flipped(prints: Bytes, bits: int) -> Bytes:
    """Return fingerprints with the first ``bits`` bits changed."""
    changed = np.unpackbits(prints, axis=1)
    changed[:, :bits] ^= 1
    return np.packbits(changed, axis=1)


def picture(seed: int) -> bytes:
    """Return a thumbnail with fine detail."""
    grain = np.random.default_rng(seed).integers(0, 256, (56, 56, 3)).astype(np.uint8)
    return thumbnail(np.asarray(Image.fromarray(grain).resize((224, 224)), dtype=np.uint8))


def recompressed(jpeg: bytes) -> bytes:
    """Return the same picture slightly blurred, as another file."""
    buffer = io.BytesIO()
    smooth = Image.open(io.BytesIO(jpeg)).filter(ImageFilter.GaussianBlur(0.4))
    smooth.save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def test_different_images_are_no_conflict() -> None:
    """Unrelated images are not reported."""
    assert conflicts_of(rows("x", noise(9, 0)), known(rows("a", noise(9, 1))), "x") == ()


def test_the_same_pixels_are_an_exact_conflict() -> None:
    """Equal digests under another label are reported with both names and the label."""
    digest = noise(1, 2)
    old = known(rows("a", noise(1, 1), digests=digest))
    new = rows("x", noise(1, 1), digests=digest)
    assert conflicts_of(new, old, "x") == (
        LabelConflict(name="x0", label="a", other="a0", exact=True),
    )


def test_a_near_duplicate_is_a_conflict() -> None:
    """Fingerprints that differ in 20 of 256 bits are near-duplicates, in 21 they are not."""
    prints = noise(1, 3)
    near = rows("x", flipped(prints, NEAR_DUPLICATE_BITS))
    far = rows("x", flipped(prints, NEAR_DUPLICATE_BITS + 1))
    old = known(rows("a", prints))
    assert [conflict.exact for conflict in conflicts_of(near, old, "x")] == [False]
    assert conflicts_of(far, old, "x") == ()


def test_duplicate_of_the_same_label_is_no_conflict() -> None:
    """A copy of an exemplar of the same label is not reported, of another label it is."""
    prints = noise(1, 4)
    old = known(rows("a", prints), rows("x", prints, prefix="old"))
    found = conflicts_of(rows("x", prints), old, "x")
    assert [(conflict.label, conflict.other) for conflict in found] == [("a", "a0")]


def test_only_the_nearest_of_a_label_is_reported() -> None:
    """Only the nearest exemplar of each label is reported, in any shard."""
    prints = noise(1, 5)
    far, near = flipped(prints, 9), flipped(prints, 3)
    old = known(rows("a", far, prefix="far"), rows("b", far), rows("a", near, prefix="near"))
    found = conflicts_of(rows("x", prints), old, "x")
    assert [(conflict.label, conflict.other) for conflict in found] == [("a", "near0"), ("b", "b0")]


def test_the_same_pixels_come_before_an_equal_fingerprint() -> None:
    """An exemplar of the same pixels is reported rather than one with an equal fingerprint."""
    prints, digest = noise(1, 6), noise(1, 7)
    old = known(
        rows("a", np.repeat(prints, 3, axis=0), prefix="like"),
        rows("a", prints, digests=digest, prefix="same"),
    )
    found = conflicts_of(rows("x", prints, digests=digest), old, "x")
    assert [(conflict.other, conflict.exact) for conflict in found] == [("same0", True)]


@pytest.mark.parametrize("same", [True, False])
def test_thumbnails_confirm_near_duplicates(*, same: bool) -> None:
    """Near fingerprints with different thumbnails are no conflict; a recompressed copy is."""
    prints = noise(1, 8)
    old = known(rows("a", prints, thumbnails=[picture(0)]))
    seen = recompressed(picture(0)) if same else picture(1)
    found = conflicts_of(rows("x", flipped(prints, 5), thumbnails=[seen]), old, "x")
    assert [conflict.label for conflict in found] == ["a"] * same


def test_near_duplicate_without_thumbnail_is_a_conflict() -> None:
    """If either image has no thumbnail, near fingerprints are enough."""
    prints = noise(1, 9)
    new = rows("x", prints, thumbnails=[picture(0)])
    assert len(conflicts_of(new, known(rows("a", prints)), "x")) == 1


def test_near_duplicates_are_limited_to_the_nearest_labels() -> None:
    """Near-duplicates are searched in the nearest labels only; exact ones in all labels."""
    prints, digest = noise(1, 10), noise(1, 11)
    near = [rows(f"near {index:02}", flipped(prints, index)) for index in range(MAX_LABELS + 3)]
    exact = [rows(f"same {index:02}", prints, digests=digest) for index in range(MAX_LABELS + 3)]
    found = conflicts_of(rows("x", prints, digests=digest), known(*near, *exact), "x")
    assert [conflict.label for conflict in found] == [
        *(f"same {index:02}" for index in range(MAX_LABELS + 3)),
        *(f"near {index:02}" for index in range(MAX_LABELS)),
    ]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, BLOCK[0] + 40), st.integers(1, BLOCK[1] + 40))
def test_every_copy_is_found_across_blocks(seed: int, few: int, many: int) -> None:
    """Exactly the copied images are found, in order, in any block."""
    rng = np.random.default_rng(seed)
    new = rows("x", noise(few, seed))
    prints = noise(many, seed + 1)
    copies = rng.choice(few, min(5, few, many), replace=False)
    places = rng.choice(many, len(copies), replace=False)
    prints[places] = new.fingerprints[copies]
    old = rows("a", prints)
    found = conflicts_of(new, known(old), "x")
    assert [conflict.name for conflict in found] == [new.names[row] for row in sorted(copies)]
    assert {conflict.other for conflict in found} == {f"a{place}" for place in places}


def test_find_same_reports_known_pixels_of_the_label() -> None:
    """Rows with the pixels of an exemplar of the same label are found, not of another label."""
    digests = noise(4, 12)
    old = known(
        rows("x", noise(2, 13), digests=digests[:2]), rows("a", noise(1, 14), digests=digests[2:3])
    )
    new = rows("x", noise(4, 15), digests=digests)
    found = {
        name: bool(is_known)
        for name, is_known in zip(new.names, old.find_same(shard_of(new, "x"), "x"), strict=True)
    }
    assert found == {"x0": True, "x1": True, "x2": False, "x3": False}
    assert not old.find_same(shard_of(new, "x"), "new label").any()


def test_no_shards_give_no_conflicts() -> None:
    """Without shards there are neither conflicts nor copies."""
    new = rows("x", noise(2, 16))
    assert conflicts_of(new, KnownExemplars.of([]), "x") == ()
    assert not KnownExemplars.of([]).find_same(shard_of(new, "x"), "x").any()
