"""Embedding: every source becomes an exemplar or is skipped with a reason."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support import tiny
from support.bad_images import KINDS, bombs, unreadable
from support.pictures import encode, picture, pictures

from topwork.bundle.exemplars import Exemplars
from topwork.errors import ImageError
from topwork.inputs.duplicates import fingerprint
from topwork.inputs.image import pixel_digest, preprocess
from topwork.inputs.image_source import ImageSource
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.runtime.backend import Session, open_session
from topwork.training import embed as module
from topwork.training.embed import EmbeddedRow, Skipped, embed


@pytest.fixture(scope="module")
def session() -> Session:
    """Return a session of the tiny backbone."""
    return open_session(tiny.backbone_model(), output="embedding")


def source(content: bytes, name: str = "photo", label: str = "amber") -> ImageSource:
    """Return a source in memory."""
    return ImageSource(name=name, label=label, read=lambda: content)


def sources(label: str, count: int, *, start: int = 0) -> list[ImageSource]:
    """Return different pictures of one label."""
    return [
        source(content, f"{label}-{index}", label)
        for index, content in enumerate(pictures(label, count, start=start), start)
    ]


def run(
    items: list[ImageSource],
    session: Session,
    *,
    limits: InputLimits = DEFAULT_LIMITS,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Exemplars | None, list[Skipped]]:
    """Embed with two threads."""
    return embed(items, session, tiny.SPEC, cores=2, limits=limits, on_image=on_image)


def test_exemplar_matches_serving(session: Session) -> None:
    """Embedding, digest and fingerprint are those of the image's preprocessed pixels."""
    content = picture("blue", 3)
    pixels = preprocess(content, tiny.SPEC)
    made, skipped = run([*sources("amber", 9), source(content, label="blue")], session)
    assert made is not None
    assert not skipped
    (row,) = np.flatnonzero(made.targets == made.labels.index("blue"))
    assert made.digests[row].tobytes().hex() == pixel_digest(pixels)
    assert (made.fingerprints[row] == fingerprint(pixels)).all()
    assert made.embeddings[row].tobytes() == session.run(pixels[None])[0].tobytes()


def test_unreadable_files_are_skipped(session: Session) -> None:
    """Unreadable files are skipped with name, label and reason, in order; others are embedded."""
    bad = [source(content, name, "green") for name, content in unreadable().items()]
    good = sources("green", len(bad))
    mixed = [item for pair in zip(bad, good, strict=True) for item in pair]
    made, skipped = run(mixed, session)
    assert made is not None
    assert len(made) == len(good)
    assert [skip.name for skip in skipped] == list(unreadable())
    assert {skip.label for skip in skipped} == {"green"}
    assert {skip.reason for skip in skipped} == {"IMAGE_UNREADABLE"}
    assert all(skip.message for skip in skipped)


def test_every_format_is_embedded(session: Session) -> None:
    """Files of all formats are embedded."""
    image = Image.open(io.BytesIO(picture("green", 1)))
    mixed = [source(encode(image, kind), kind, kind) for kind in KINDS]
    made, skipped = run(mixed, session)
    assert not skipped
    assert made is not None
    assert len(made) == len(KINDS)


def test_too_large_images_are_skipped(session: Session) -> None:
    """Files with too many bytes or pixels are skipped, with value and limit."""
    large, bomb = source(bytes(3 * 2**20), "large"), source(bombs(9_000, 9_000)["JPEG"], "bomb")
    limits = InputLimits(max_image_bytes=2**20)
    made, skipped = run([large, bomb, *sources("amber", 1)], session, limits=limits)
    assert made is not None
    assert [(skip.name, skip.reason) for skip in skipped] == [
        ("large", "IMAGE_TOO_LARGE"),
        ("bomb", "IMAGE_TOO_LARGE"),
    ]
    assert "3.0 MiB; the limit is 1.0 MiB" in skipped[0].message
    assert "81000000 pixels; the limit is 50000000" in skipped[1].message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "IMAGE_UNREADABLE"),
        (ImageError("it is behind a link", reason="IMAGE_TOO_LARGE"), "IMAGE_TOO_LARGE"),
    ],
)
def test_files_that_cannot_be_read_are_skipped(
    error: Exception, reason: str, session: Session
) -> None:
    """The error of reading a source becomes the reason."""

    def read() -> bytes:
        raise error

    made, skipped = run([ImageSource(name="it", label="a", read=read)], session)
    assert made is None
    assert [(skip.name, skip.reason) for skip in skipped] == [("it", reason)]
    assert str(error) in skipped[0].message


def test_unexpected_error_is_raised(session: Session) -> None:
    """An unexpected error is not treated as an unreadable image."""

    def read() -> bytes:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run([ImageSource(name="it", label="a", read=read)], session)


def test_duplicates_are_skipped_with_the_name_of_the_first(session: Session) -> None:
    """Equal pixels under one label are used once, under two labels twice."""
    content = picture("amber", 0)
    items = [
        source(content, "first"),
        source(content, "second"),
        source(content, "under another label", "blue"),
        *sources("amber", 3, start=1),
        source(content, "third"),
    ]
    made, skipped = run(items, session)
    assert made is not None
    assert made.counts().tolist() == [4, 1]
    assert [(skip.name, skip.label, skip.reason) for skip in skipped] == [
        ("second", "amber", "DUPLICATE"),
        ("third", "amber", "DUPLICATE"),
    ]
    assert all("first" in skip.message for skip in skipped)


def test_duplicates_of_the_same_name_are_skipped(session: Session) -> None:
    """Of two equal images of the same name the later is skipped."""
    made, skipped = run([source(picture("amber", 0), "IMG_1.jpg")] * 2, session)
    assert made is not None
    assert len(made) == 1
    assert [(skip.name, skip.reason) for skip in skipped] == [("IMG_1.jpg", "DUPLICATE")]


@pytest.mark.slow
def test_the_order_of_sources_does_not_matter(session: Session) -> None:
    """Sources in any order, with any number of threads, give shards of equal bytes."""
    items = [item for label in ("amber", "blue", "green") for item in sources(label, 50)]
    expected, _ = run(items, session)
    assert expected is not None
    for seed, cores in enumerate((1, 2, 5)):
        order = np.random.default_rng(seed).permutation(len(items))
        found, _ = embed([items[index] for index in order], session, tiny.SPEC, cores=cores)
        assert found is not None
        assert tiny.shard_files(found) == tiny.shard_files(expected)


def test_on_image_is_called_once_per_image_in_the_callers_thread(session: Session) -> None:
    """on_image is called for used, unreadable and duplicate images."""
    items = [*sources("amber", 150), source(b"bad"), *sources("amber", 1)]
    threads: list[threading.Thread] = []
    run(items, session, on_image=lambda: threads.append(threading.current_thread()))
    assert len(threads) == len(items)
    assert set(threads) == {threading.current_thread()}


def test_error_of_on_image_stops_embedding(session: Session) -> None:
    """An error of on_image, such as a cancellation, is raised, and few more sources are read."""
    read: list[int] = []

    def counted(index: int) -> ImageSource:
        def content() -> bytes:
            read.append(index)
            return picture("amber", index)

        return ImageSource(name=str(index), label="amber", read=content)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([counted(index) for index in range(500)], session, on_image=stop)
    assert len(read) <= 2 * module.WINDOW + 2


def test_no_sources_give_no_exemplars(session: Session) -> None:
    """An empty generator gives None and no skipped image."""
    called: list[None] = []
    found = embed(
        (item for item in list[ImageSource]()),
        session,
        tiny.SPEC,
        cores=2,
        on_image=lambda: called.append(None),
    )
    assert found == (None, [])
    assert not called


def test_sources_are_read_lazily(session: Session) -> None:
    """At most WINDOW sources per core are taken ahead."""
    taken: list[int] = []
    ahead: list[int] = []

    def generate() -> Iterator[ImageSource]:
        for index in range(300):
            taken.append(index)
            yield source(b"bad", str(index))

    done: list[None] = []

    def on_image() -> None:
        done.append(None)
        ahead.append(len(taken) - len(done))

    embed(generate(), session, tiny.SPEC, cores=1, on_image=on_image)
    assert len(done) == 300
    assert max(ahead) <= module.WINDOW


def test_slow_image_does_not_block_others(session: Session) -> None:
    """While one image is slow, the others in flight are embedded."""
    items = sources("amber", 2 * module.WINDOW + 30)
    later = threading.Event()
    slow, last = 20, 20 + 2 * module.WINDOW - 2

    def wait() -> bytes:
        assert later.wait(30)
        return picture("blue", 0)

    def signal() -> bytes:
        later.set()
        return picture("blue", 1)

    items[slow] = ImageSource(name="slow", label="blue", read=wait)
    items[last] = ImageSource(name="last", label="blue", read=signal)
    made, skipped = run(items, session)
    assert made is not None
    assert made.counts().tolist() == [len(items) - 2, 2]
    assert not skipped


class MemoryCache:
    """Cache in memory."""

    def __init__(self) -> None:
        self.rows: dict[bytes, EmbeddedRow] = {}

    def get(self, content: bytes) -> EmbeddedRow | None:
        """Return the stored row."""
        return self.rows.get(content)

    def put(self, content: bytes, row: EmbeddedRow) -> None:
        """Store the row."""
        self.rows[content] = row


def test_cache_key_is_the_content(session: Session) -> None:
    """A row is found by the file's sha256, for any name and label, without a run."""
    cache, fake = MemoryCache(), FakeSession()
    first, _ = embed(sources("amber", 5), session, tiny.SPEC, cores=2, cache=cache)
    assert cache.rows.keys() == {sha256(content).digest() for content in pictures("amber", 5)}
    renamed = [
        source(content, f"copy-{at}", "blue") for at, content in enumerate(pictures("amber", 5))
    ]
    second, _ = embed(renamed, fake, tiny.SPEC, cores=2, cache=cache)
    assert first is not None
    assert second is not None
    assert second.embeddings.tobytes() == first.embeddings.tobytes()
    assert (second.labels, fake.batches) == (("blue",), [])


def test_unreadable_images_are_not_cached(session: Session) -> None:
    """An unreadable image is read and skipped again the next time."""
    cache = MemoryCache()
    for _ in range(2):
        _, skipped = embed([source(b"bad")], session, tiny.SPEC, cores=1, cache=cache)
        assert [skip.reason for skip in skipped] == ["IMAGE_UNREADABLE"]
    assert not cache.rows


class FakeSession:
    """Session that records the shapes of its batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed with two threads."""
        self.batches.append(batch.shape)
        return batch.reshape(len(batch), -1)[:, :1].astype(np.float32)


def test_images_are_embedded_alone() -> None:
    """Each image is a batch, so its embedding does not depend on other images."""
    fake = FakeSession()
    made, _ = run(sources("amber", 5), fake)  # type: ignore[arg-type]  # all that is used of a session
    assert made is not None
    assert fake.batches == [(1, 16, 16, 3)] * 5
    assert all(first.tobytes() != second.tobytes() for first, second in pairwise(made.digests))
