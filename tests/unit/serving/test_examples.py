"""Lists of examples: order, filters, details."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import tiny
from support.pictures import pictures

from topwork.bundle import npz
from topwork.bundle.examples import ExampleIndex, from_bytes, make_index, to_bytes
from topwork.bundle.exemplars import ShardRows
from topwork.bundle.manifest import Manifest, ShardRef
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.serving.examples import ExampleFilter, Examples, Pattern, select

NAMES = ["IMG_1.jpg", "IMG_10.jpg", "img_1.jpg", "雛菊.jpg", "", "IMG_"]
LABELS = ("daisy", "rose", "雛菊")


def index_of(names: list[str] = NAMES, **scores: object) -> ExampleIndex:
    """Return an index of examples with these names, of the three labels in turn."""
    count = len(names)
    rows = np.arange(count)
    digests = np.random.default_rng(0).integers(0, 256, (count, 32)).astype(np.uint8)
    sources = ShardRows(labels=LABELS, targets=rows % 3, parts=rows % 3, rows=rows // 3)
    arrays = {name: np.array(values) for name, values in scores.items()}
    return make_index(LABELS, digests, rows % 3, names, sources, **arrays)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a model of four colours."""
    return tiny.repository(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def manifest(repository: Repository) -> Manifest:
    """Return the manifest of the four colours."""
    return repository.manifest("colours", 1)


def names(index: ExampleIndex, manifest: Manifest, wanted: ExampleFilter) -> list[str]:
    """Return the names of the selected examples, in order."""
    return [index.name(row) for row in select(index, manifest, wanted).tolist()]


def test_suspects_come_first_then_the_least_probable(manifest: Manifest) -> None:
    """Examples that were not evaluated are last."""
    index = index_of(
        [*"abcdef"],
        suspicion=[0, 0.2, 0, 0.7, 0, 0],
        probabilities=[0.9, 0.3, np.nan, 0.1, 0.2, np.nan],
    )
    assert names(index, manifest, ExampleFilter()) == [*"dbeacf"]
    assert names(index, manifest, ExampleFilter(suspect=True)) == [*"db"]
    assert names(index, manifest, ExampleFilter(suspect=False)) == [*"eacf"]


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("IMG_1.jpg", False), ("IMG_1", True), ("IMG_", True), ("雛", True), ("", True), ("", False)],
)
def test_names_are_selected_by_prefix_or_whole(text: str, prefix: bool, manifest: Manifest) -> None:
    """As Python's startswith and equality."""
    found = names(index_of(), manifest, ExampleFilter(name=Pattern(text=text, prefix=prefix)))
    matches = [name for name in NAMES if (name.startswith(text) if prefix else name == text)]
    assert sorted(found) == sorted(matches)


@given(st.integers(0, 5), st.integers(0, 64), st.booleans())
def test_digests_are_selected_by_prefix_or_whole(row: int, length: int, prefix: bool) -> None:
    """Also by half bytes; part of a digest without * selects nothing."""
    index = index_of()
    digests = [digest.tobytes().hex() for digest in index.digests]
    text = digests[row][:length]
    found = select(index, manifest_of(), ExampleFilter(digest=Pattern(text=text, prefix=prefix)))
    matches = [
        number
        for number, digest in enumerate(digests)
        if (digest.startswith(text) if prefix else digest == text)
    ]
    assert sorted(found.tolist()) == matches


def manifest_of() -> Manifest:
    """Return a manifest, of which only the shards matter."""
    refs = tuple(
        ShardRef(label=label, digest="0" * 64, operation=operation)
        for label, operation in zip(LABELS, ("", "x", "y"), strict=True)
    )
    with_refs = object.__new__(Manifest)
    object.__setattr__(with_refs, "exemplars", refs)
    return with_refs


def test_label_and_operation_select_together() -> None:
    """An unknown label or operation selects nothing, an empty operation those of a fit."""
    index, manifest = index_of(), manifest_of()
    assert names(index, manifest, ExampleFilter(label="rose")) == [NAMES[1], NAMES[4]]
    assert names(index, manifest, ExampleFilter(operation="y")) == [NAMES[2], NAMES[5]]
    assert names(index, manifest, ExampleFilter(operation="")) == [NAMES[0], NAMES[3]]
    assert names(index, manifest, ExampleFilter(label="rose", operation="y")) == []
    assert names(index, manifest, ExampleFilter(label="tulip")) == []
    assert names(index, manifest, ExampleFilter(operation="z")) == []


def test_index_survives_a_round_trip() -> None:
    """Equal indexes give equal bytes."""
    index = index_of()
    again = from_bytes(to_bytes(index), LABELS, 3)
    assert to_bytes(again) == to_bytes(index)
    assert [again.name(row) for row in range(len(again))] == NAMES


@pytest.mark.parametrize(("labels", "shards"), [(LABELS[:2], 3), (LABELS, 2)])
def test_index_that_refers_to_nothing_is_corrupt(labels: tuple[str, ...], shards: int) -> None:
    """Indices beyond the labels or shards of the manifest are refused."""
    with pytest.raises(Corrupt, match=r"examples\.npz cannot be used"):
        from_bytes(to_bytes(index_of()), labels, shards)


def test_index_of_an_earlier_release_has_no_predictions_and_places() -> None:
    """Its file lacks the arrays, and is read all the same."""
    index = index_of(ranked=np.zeros((6, 3)), points=np.zeros((6, 2)))
    earlier = npz.encode(
        {
            name: (getattr(index, name), getattr(index, name).dtype.str)
            for name in index.__slots__
            if name not in {"labels", "ranked", "ranked_probabilities", "points"}
        }
    )
    read = from_bytes(earlier, LABELS, 3)
    assert (read.ranked == -1).all()
    assert np.isnan(read.ranked_probabilities).all()
    assert np.isnan(read.points).all()
    assert [read.name(row) for row in range(len(read))] == NAMES


@pytest.mark.parametrize("ranked", [np.full((6, 3), 3), np.full((6, 3), -2), np.zeros((6, 2))])
def test_index_with_wrong_predictions_is_corrupt(ranked: NDArray[np.float64]) -> None:
    """Labels that are not, and another number of columns, are refused."""
    with pytest.raises(Corrupt, match=r"examples\.npz cannot be used"):
        from_bytes(to_bytes(index_of(ranked=ranked)), LABELS, 3)


def test_torn_index_is_corrupt() -> None:
    """As any other file."""
    content = to_bytes(index_of())
    for end in (0, 10, len(content) // 2, len(content) - 1):
        with pytest.raises(Corrupt, match=r"examples\.npz cannot be used"):
            from_bytes(content[:end], LABELS, 3)


def test_details_are_those_of_the_shard(repository: Repository, manifest: Manifest) -> None:
    """The preview and the content's digest; the image of a fit is not stored, until it is."""
    examples = Examples(repository)

    async def read(row: int) -> tuple[bytes, str, bool]:
        index = await examples.index(manifest)
        (detail,) = await examples.details(manifest, index, [row])
        return detail.preview, detail.content, detail.stored

    exemplars = repository.exemplars(manifest.exemplars)
    for row in (0, len(exemplars) - 1):
        content = exemplars.contents[row].tobytes().hex()
        assert asyncio.run(read(row)) == (exemplars.thumbnails[row], content, False)
    image = next(
        picture
        for label in manifest.labels
        for picture in pictures(label, 20)
        if repository.put_image(picture) == exemplars.contents[0].tobytes().hex()
    )
    assert image
    assert asyncio.run(read(0))[2]


def test_changed_shard_is_corrupt_even_if_it_was_read(tmp_path: Path) -> None:
    """Its sha256 is computed again when the file has changed."""
    repository = tiny.repository(tmp_path)
    manifest = repository.manifest("colours", 1)

    async def read() -> None:
        examples = Examples(repository)
        index = await examples.index(manifest)
        await examples.details(manifest, index, range(len(index)))
        path = repository.root / repository.key("exemplars", manifest.exemplars[0].digest)
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(Corrupt, match="it was changed"):
            await examples.details(manifest, index, range(len(index)))

    asyncio.run(read())


def test_revision_of_an_earlier_release_has_examples_without_scores(
    repository: Repository, manifest: Manifest
) -> None:
    """The index is read from the shards."""
    earlier = replace(manifest, examples=None)
    index, scored = repository.examples(earlier), repository.examples(manifest)
    np.testing.assert_array_equal(index.digests, scored.digests)
    np.testing.assert_array_equal(index.parts, scored.parts)
    np.testing.assert_array_equal(index.rows, scored.rows)
    assert (index.suggested == -1).all()
    assert np.isnan(index.probabilities).all()
    assert not np.isnan(scored.probabilities).any()
    assert (scored.folds >= 0).all()
