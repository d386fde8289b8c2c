"""Shards: deterministic encoding, memory mapping, and detection of damaged files."""

from __future__ import annotations

import io
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from topwork.bundle.npz import ALIGNMENT
from topwork.bundle.shards import Shard, open_shard, to_bytes
from topwork.errors import Corrupt
from topwork.storage.files import sha256

ARRAYS = ("embeddings", "digests", "fingerprints", "contents", "seen")


def shard(rows: int = 5, *, name: str = "photo", seed: int = 0) -> Shard:
    """Return a shard of random exemplars."""
    rng = np.random.default_rng(seed)
    digests, prints, contents = rng.integers(0, 256, (3, rows, 32), dtype=np.uint8)
    return Shard(
        embeddings=rng.normal(size=(rows, 7)).astype(np.float32),
        digests=digests,
        fingerprints=prints,
        contents=contents,
        seen=np.arange(rows) % 2 == 0,
        names=tuple(f"{name} {row}" for row in range(rows)),
        thumbnails=tuple(rng.bytes(row) for row in range(rows)),
        groups=np.zeros((rows, 16), np.uint8),
    )


def stored(directory: Path, content: bytes) -> Shard:
    """Store ``content`` as a shard file and open it."""
    path = directory / "shard.npz"
    path.write_bytes(content)
    return open_shard(path, sha256(content))


@pytest.mark.parametrize("rows", [0, 1, 5, 300])
def test_open_shard_returns_what_was_encoded(rows: int, tmp_path: Path) -> None:
    """Arrays, with their dtypes, names and thumbnails are read unchanged."""
    made = shard(rows)
    read = stored(tmp_path, to_bytes(made))
    for name in ARRAYS:
        before, after = getattr(made, name), getattr(read, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    assert read.names == made.names
    assert read.thumbnails == made.thumbnails
    assert len(read) == rows


@pytest.mark.parametrize("name", ["", "fleur d'été", "\u5c71\0"], ids=ascii)
def test_names_may_have_any_character(name: str, tmp_path: Path) -> None:
    """Names may be empty, not ASCII, or contain a NUL."""
    made = shard(name=name)
    assert stored(tmp_path, to_bytes(made)).names == made.names


def test_name_that_is_not_utf_8_is_read_escaped(tmp_path: Path) -> None:
    """Earlier versions stored such names, which protobuf messages cannot hold."""
    names = stored(tmp_path, to_bytes(shard(name="\udcff.jpg"))).names
    assert names[0] == "\\xff.jpg 0"


def test_equal_shards_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoding depends only on the exemplars, not on the time."""
    first = to_bytes(shard())
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + 1e6)
        later.setattr(time, "localtime", lambda *_args: time.gmtime(now + 1e6))
        assert to_bytes(shard()) == first
    assert to_bytes(shard(seed=1)) != first


def test_memory_layout_does_not_change_the_bytes() -> None:
    """Column-major or sliced arrays give the same bytes."""
    made = shard()
    turned = Shard(
        embeddings=np.asfortranarray(made.embeddings),
        digests=np.repeat(made.digests, 2, axis=0)[::2],
        fingerprints=made.fingerprints,
        contents=made.contents,
        seen=made.seen,
        names=made.names,
        thumbnails=made.thumbnails,
        groups=made.groups,
    )
    assert to_bytes(turned) == to_bytes(made)


def test_numpy_and_zip_tools_read_a_shard(tmp_path: Path) -> None:
    """A shard is a valid .npz, which numpy.load reads without pickle."""
    path = tmp_path / "shard.npz"
    path.write_bytes(to_bytes(shard()))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with np.load(path, allow_pickle=False) as arrays:
        for name in ARRAYS:
            assert np.array_equal(arrays[name], getattr(shard(), name))


def test_groups_are_stored_only_if_an_exemplar_has_one(tmp_path: Path) -> None:
    """A shard without groups has the bytes of earlier versions; one with groups keeps them."""
    plain, groups = shard(), np.zeros((5, 16), np.uint8)
    assert b"groups" not in to_bytes(plain)
    assert not stored(tmp_path, to_bytes(plain)).groups.any()
    groups[2] = 7
    read = stored(tmp_path, to_bytes(replace(plain, groups=groups)))
    assert (read.groups == groups).all()
    assert mapping(read.groups).mode == "r"


# Mapping


def mapping(array: NDArray[np.generic]) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    """Return the memory map that an array is a view of."""
    base = array.base
    while not isinstance(base, np.memmap):
        assert isinstance(base, np.ndarray), "the array is not memory-mapped"
        base = base.base
    return base


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_aligned_views_of_the_file(name: str, tmp_path: Path) -> None:
    """Each array is a read-only view of the mapped file, aligned to a cache line."""
    read = stored(tmp_path, to_bytes(shard()))
    array = getattr(read, name)
    assert mapping(array).filename == str(tmp_path / "shard.npz")
    assert mapping(array).mode == "r"
    assert array.ctypes.data % ALIGNMENT == 0
    assert not array.flags.writeable


@pytest.mark.slow
def test_embeddings_are_not_read_into_private_memory(tmp_path: Path) -> None:
    """Opening and using 64 MB of embeddings takes little private memory."""

    def private() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (found,) = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        return found

    made = shard(1)
    path = tmp_path / "shard.npz"
    content = to_bytes(
        Shard(
            embeddings=np.ones((1, 2**24), np.float32),
            digests=made.digests,
            fingerprints=made.fingerprints,
            contents=made.contents,
            seen=made.seen,
            names=made.names,
            thumbnails=made.thumbnails,
            groups=made.groups,
        )
    )
    path.write_bytes(content)
    digest = sha256(content)
    before = private()
    read = open_shard(path, digest)
    assert read.embeddings.max() == 1
    assert private() - before < 8 * 1024  # KB


def test_a_deleted_shard_can_still_be_read(tmp_path: Path) -> None:
    """An open shard stays readable after its file is deleted."""
    read = stored(tmp_path, to_bytes(shard()))
    (tmp_path / "shard.npz").unlink()
    assert np.array_equal(read.embeddings, shard().embeddings)


# Damage


@pytest.mark.slow
def test_flipped_bit_in_any_byte_is_corrupt(tmp_path: Path) -> None:
    """A change of any byte is Corrupt; the message names the file."""
    content = to_bytes(shard(2))
    path = tmp_path / "shard.npz"
    digest = sha256(content)
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(Corrupt, match=r"shard\.npz has sha256"):
            open_shard(path, digest)


def test_a_missing_shard_is_corrupt(tmp_path: Path) -> None:
    """A missing file is Corrupt; the message names it."""
    with pytest.raises(Corrupt, match=r"none\.npz is missing"):
        open_shard(tmp_path / "none.npz", "0" * 64)


WHOLE = to_bytes(shard(3))


def archive(**changes: NDArray[np.generic]) -> bytes:
    """Return an archive like WHOLE with some arrays replaced."""
    with np.load(io.BytesIO(WHOLE)) as arrays:
        content = {**arrays, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getvalue()


def compressed() -> bytes:
    """Return WHOLE compressed, which cannot be mapped."""
    buffer = io.BytesIO()
    with np.load(io.BytesIO(WHOLE)) as arrays:
        np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def flipped(at: int, *, bit: int = 0x55) -> bytes:
    """Return WHOLE with one byte changed."""
    content = bytearray(WHOLE)
    content[at] ^= bit
    return bytes(content)


def test_archive_of_valid_arrays_is_a_shard(tmp_path: Path) -> None:
    """``archive`` without changes is valid, so the cases below fail for their changes."""
    assert len(stored(tmp_path, archive())) == 3


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(archive(names=np.array([{"a": 1}], dtype=object)), id="pickled objects"),
        pytest.param(b"no shard at all", id="garbage"),
        pytest.param(WHOLE[: len(WHOLE) // 2], id="truncated"),
        pytest.param(WHOLE.replace(b"digests", b"digestz"), id="an array is missing"),
        pytest.param(b"", id="empty"),
        pytest.param(WHOLE[: WHOLE.index(b"\x93NUMPY")], id="only a header"),
        pytest.param(flipped(WHOLE.index(b"\x93NUMPY") + 12), id="no array header"),
        pytest.param(flipped(WHOLE.index(b"PK\1\2") + 8, bit=1), id="encrypted"),
        pytest.param(flipped(WHOLE.index(b"PK\1\2") + 26, bit=0xFF), id="sizes are wrong"),
        pytest.param(flipped(WHOLE.index(b"PK\1\2") + 42, bit=0xFF), id="offsets are wrong"),
        pytest.param(compressed(), id="compressed"),
        pytest.param(archive(embeddings=np.zeros((), np.float32)), id="embeddings as a number"),
        pytest.param(archive(embeddings=np.zeros(3, np.float32)), id="embeddings as a row"),
        pytest.param(archive(embeddings=np.zeros((3, 7))), id="embeddings in float64"),
        pytest.param(archive(embeddings=np.zeros((7, 3), np.float32).T), id="embeddings by column"),
        pytest.param(archive(embeddings=np.zeros((3, 7), ">f4")), id="embeddings in big-endian"),
        pytest.param(archive(seen=np.zeros(2, np.bool_)), id="few seen"),
        pytest.param(archive(seen=np.full(3, 2, np.uint8).view(np.bool_)), id="seen of 2"),
        pytest.param(archive(digests=np.zeros((3, 32))), id="digests as floats"),
        pytest.param(archive(contents=np.zeros((3, 31), np.uint8)), id="short contents"),
        pytest.param(archive(fingerprints=np.zeros((2, 32), np.uint8)), id="few fingerprints"),
        pytest.param(archive(groups=np.ones((2, 16), np.uint8)), id="few groups"),
        pytest.param(archive(groups=np.ones((3, 15), np.uint8)), id="short groups"),
        pytest.param(archive(name_ends=np.array([4])), id="few names"),
        pytest.param(archive(name_ends=np.array([4, 2, 9])), id="names that overlap"),
        pytest.param(archive(thumbnail_ends=np.array([-1, 0, 3])), id="negative lengths"),
        pytest.param(archive(thumbnail_ends=np.array([0, 1, 2**40])), id="thumbnails beyond"),
        pytest.param(
            archive(names=np.full(24, 0xFF, np.uint8), name_ends=np.array([8, 16, 24])),
            id="names in no encoding",
        ),
    ],
)
def test_invalid_shard_is_corrupt(content: bytes, tmp_path: Path) -> None:
    """An invalid file is Corrupt; the message names it, and nothing is unpickled."""
    with pytest.raises(Corrupt, match=r"shard\.npz is not a valid shard"):
        stored(tmp_path, content)
