"""Embeddings of clients: checks, fingerprints, and the union of specs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_wine
from support import tiny
from support.spaces import SPEC, rows

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.spaces import put_space
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, ImageError, InvalidInput
from topwork.inputs.duplicates import NEAR_DUPLICATE_BITS, near_duplicates
from topwork.inputs.embeddings import (
    LARGEST_WIDTH,
    EmbeddingSpec,
    SentEmbedding,
    checked,
    digest,
    fingerprint,
    prepare,
    space_of,
    to_content,
)
from topwork.inputs.kinds import EMBEDDING, IMAGE, array_of, kind_of

ROW = rows("a", 1)[0]


def differing(left: NDArray[np.float32], right: NDArray[np.float32]) -> int:
    """Return the number of different bits of the fingerprints of two rows."""
    return int(np.unpackbits(fingerprint(left) ^ fingerprint(right)).sum())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (ROW[:11], "has 11 numbers; the space 'points-v1' has 12"),
        (np.append(ROW, ROW[:1]), "has 13 numbers; the space 'points-v1' has 12"),
        (ROW[:0], "has 0 numbers"),
        (ROW[None], r"has the shape \(1, 12\)"),
        (ROW.astype(np.float64), "has numbers of type float64; they must be float32"),
        (np.where(np.arange(12) == 3, np.nan, ROW).astype("f4"), "has the value nan at 3"),
        (np.where(np.arange(12) == 4, -np.inf, ROW).astype("f4"), "has the value -inf at 4"),
        (
            np.where(np.arange(12) == 5, 2e15, ROW).astype("f4"),
            r"has the value 2e\+15 at 5; .* 1e\+15",
        ),
    ],
)
def test_vector_that_does_not_fit_is_refused_with_its_value(
    numbers: NDArray[Any], message: str
) -> None:
    """Width, type and values are checked; the error has the value."""
    with pytest.raises(ImageError, match=message) as caught:
        checked(SentEmbedding(numbers), SPEC)
    assert caught.value.reason == "EMBEDDING_INVALID"


def test_another_space_is_refused_with_both_names() -> None:
    """A client that does not name the space is believed."""
    with pytest.raises(
        ImageError, match=r"is of the space 'other'; the model takes .* 'points-v1'"
    ):
        checked(SentEmbedding(ROW, "other"), SPEC)
    assert np.array_equal(checked(SentEmbedding(ROW, "points-v1"), SPEC), ROW)
    assert np.array_equal(checked(SentEmbedding(ROW.tolist(), ""), SPEC), ROW)


@given(content=st.binary(max_size=64))
def test_any_stored_bytes_are_a_row_or_an_error(content: bytes) -> None:
    """What is accepted is finite, and is stored as the same bytes, but for the sign of 0."""
    try:
        row = prepare(content, SPEC)
    except ImageError:
        return
    assert np.isfinite(row).all()
    assert np.array_equal(prepare(to_content(row), SPEC), row)


def test_zero_is_a_vector_and_its_sign_is_ignored() -> None:
    """0 and -0 have the same digest; a zero vector has a fingerprint."""
    zero = checked(SentEmbedding(np.zeros(12, np.float32)), SPEC)
    negative = checked(SentEmbedding(-np.zeros(12, np.float32)), SPEC)
    assert digest(zero) == digest(negative) == hashlib.sha256(bytes(48)).hexdigest()
    assert fingerprint(zero).shape == (32,)


def test_fingerprint_is_the_same_on_every_machine() -> None:
    """The bytes are stored with exemplars, and decide the folds."""
    row = np.arange(1, 13, dtype=np.float32)
    assert fingerprint(row).tobytes().hex() == FINGERPRINT


FINGERPRINT = "3eb358a71b779777fd55793daf9a7028ab9dca5c55dc85f95212da2953670c71"


@pytest.mark.parametrize("width", [1, 2, 12, 768, LARGEST_WIDTH])
def test_fingerprints_differ_with_the_distance(width: int) -> None:
    """float16 rounds within the near-duplicates; 2 % of the length differ in half of the bits."""
    generator = np.random.default_rng(width)
    for _ in range(20):
        row = generator.normal(size=width).astype(np.float32) + np.float32(1)
        rounded = row.astype(np.float16).astype(np.float32)
        assert differing(row, rounded) <= NEAR_DUPLICATE_BITS
        assert differing(row, np.float32(1.02) * row) > 2 * NEAR_DUPLICATE_BITS
        assert differing(row, -row) > 2 * NEAR_DUPLICATE_BITS


@pytest.mark.parametrize("load", [load_digits, load_wine])
def test_rows_of_tables_are_no_near_duplicates(load: Any) -> None:
    """Rows of a class whose columns are all positive, one of them large, stay apart."""
    data, targets = load(return_X_y=True)
    for label in np.unique(targets):
        own = np.stack([fingerprint(row) for row in data[targets == label].astype(np.float32)])
        assert len(np.unique(near_duplicates(own))) >= 0.98 * len(own)


def test_spec_without_a_kind_is_that_of_images() -> None:
    """A backbone.json of an earlier release reads unchanged, and is written as before."""
    info = tiny.backbone_info(b"graph")
    stored = to_json(info)
    assert b'"kind"' not in stored
    assert from_json(stored, BackboneInfo, name="x") == info
    assert kind_of(info.preprocess) is IMAGE


def test_spec_of_embeddings_is_stored_with_its_kind(repository: Repository) -> None:
    """Storing a space twice is one backbone without a graph."""
    info = put_space(repository, SPEC)
    assert put_space(repository, EmbeddingSpec(space="points-v1", width=12)) == info
    assert repository.backbone_info(info.digest) == info
    assert (info.preprocess, kind_of(info.preprocess), info.has_graph) == (SPEC, EMBEDDING, False)
    with pytest.raises(InvalidInput, match="'points-v1' does not take images"):
        _ = info.image_spec


@pytest.fixture
def repository(tmp_path: Any) -> Repository:
    """Return an empty repository."""
    return Repository(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "smell"}, "does not know inputs of the kind 'smell'"),
        ({"kind": 7}, "does not know inputs of the kind 7"),
        ({"kind": "embedding", "space": "", "width": 3}, "the space ''"),
        ({"kind": "embedding", "space": "x", "width": 0}, "the width 0 must be between 1"),
        ({"kind": "embedding", "space": "x"}, "width"),
        ({"resize": 8}, "crop"),
        ([], "Expected"),
    ],
)
def test_damaged_spec_is_corrupt(spec: object, message: str) -> None:
    """The error says what is wrong with it."""
    tree = {**json.loads(to_json(tiny.backbone_info(b"graph"))), "preprocess": spec}
    broken = json.dumps(tree).encode()
    with pytest.raises(Corrupt, match=message):
        from_json(broken, BackboneInfo, name="backbone.json")


@pytest.mark.parametrize(
    ("space", "width"), [("", 1), (" x", 1), ("x\n", 1), ("x" * 101, 1), ("x", 0), ("x", 10**6)]
)
def test_impossible_space_is_invalid_input(space: str, width: int) -> None:
    """A client names it."""
    with pytest.raises(InvalidInput, match=r"space|width"):
        space_of(space, width)


def test_another_kind_of_input_is_refused_with_both_names() -> None:
    """An image for a model of embeddings, and the reverse."""
    with pytest.raises(InvalidInput, match="'m' takes inputs of the kind 'embedding', not 'image'"):
        array_of(b"x", SPEC, model="m")
    with pytest.raises(InvalidInput, match="'m' takes inputs of the kind 'image', not 'embedding'"):
        array_of(SentEmbedding(ROW), tiny.SPEC, model="m")
