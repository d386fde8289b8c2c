"""Every source becomes an exemplar or is named with the reason why not."""

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
from topwork.limits import DEFAULT_LIMITS, InputLimits
from topwork.runtime.backend import Session, open_session
from topwork.training import embed as module
from topwork.training.embed import EmbeddedRow, ImageSource, Skipped, embed


@pytest.fixture(scope="module")
def session() -> Session:
    """Return the tiny backbone, loaded."""
    return open_session(tiny.backbone_model(), output="embedding")


def source(content: bytes, name: str = "photo", label: str = "amber") -> ImageSource:
    """Return a source that is in memory."""
    return ImageSource(name=name, label=label, read=lambda: content)


def sources(label: str, count: int, *, start: int = 0) -> list[ImageSource]:
    """Return different pictures of one label."""
    return [
        source(content, f"{label}-{index}", label)
        for index, content in enumerate(pictures(label, count, start=start), start)
    ]


def run(
    given: list[ImageSource],
    session: Session,
    *,
    limits: InputLimits = DEFAULT_LIMITS,
    on_image: Callable[[], None] = lambda: None,
) -> tuple[Exemplars | None, list[Skipped]]:
    """Embed with two threads."""
    return embed(given, session, tiny.SPEC, cores=2, limits=limits, on_image=on_image)


def test_an_exemplar_is_what_serving_would_compute(session: Session) -> None:
    """Embedding, digest and fingerprint are those of the image's own pixels."""
    content = picture("blue", 3)
    pixels = preprocess(content, tiny.SPEC)
    made, skipped = run([*sources("amber", 9), source(content, label="blue")], session)
    assert made is not None
    assert not skipped
    (row,) = np.flatnonzero(made.targets == made.labels.index("blue"))
    assert made.digests[row].tobytes().hex() == pixel_digest(pixels)
    assert (made.fingerprints[row] == fingerprint(pixels)).all()
    assert made.embeddings[row].tobytes() == session.run(pixels[None])[0].tobytes()


def test_bad_files_are_named_and_the_rest_goes_on(session: Session) -> None:
    """Each unreadable file is skipped by name, label and reason, in the order given."""
    bad = [source(content, name, "green") for name, content in unreadable().items()]
    good = sources("green", len(bad))
    mixed = [one for pair in zip(bad, good, strict=True) for one in pair]
    made, skipped = run(mixed, session)
    assert made is not None
    assert len(made) == len(good)
    assert [one.name for one in skipped] == list(unreadable())
    assert {one.label for one in skipped} == {"green"}
    assert {one.reason for one in skipped} == {"IMAGE_UNREADABLE"}
    assert all(one.message for one in skipped)


def test_every_format_is_embedded(session: Session) -> None:
    """A folder of any mixture of formats is learned from, file by file."""
    image = Image.open(io.BytesIO(picture("green", 1)))
    mixed = [source(encode(image, kind), kind, kind) for kind in KINDS]
    made, skipped = run(mixed, session)
    assert not skipped
    assert made is not None
    assert len(made) == len(KINDS)


def test_limits_are_kept_and_said(session: Session) -> None:
    """Files with too many bytes or pixels are skipped as such, with value and limit."""
    large, bomb = source(bytes(3 * 2**20), "large"), source(bombs(9_000, 9_000)["JPEG"], "bomb")
    limits = InputLimits(max_image_bytes=2**20)
    made, skipped = run([large, bomb, *sources("amber", 1)], session, limits=limits)
    assert made is not None
    assert [(one.name, one.reason) for one in skipped] == [
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
def test_files_that_cannot_be_opened_are_named(
    error: Exception, reason: str, session: Session
) -> None:
    """What reading a source raises becomes the reason for which it is skipped."""

    def read() -> bytes:
        raise error

    made, skipped = run([ImageSource(name="it", label="a", read=read)], session)
    assert made is None
    assert [(one.name, one.reason) for one in skipped] == [("it", reason)]
    assert str(error) in skipped[0].message


def test_what_is_no_image_error_stops_it(session: Session) -> None:
    """A bug is not mistaken for a bad image."""

    def read() -> bytes:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run([ImageSource(name="it", label="a", read=read)], session)


def test_duplicates_are_named_with_the_first(session: Session) -> None:
    """Same pixels under one label count once and the later one is skipped, not so under two."""
    content = picture("amber", 0)
    given = [
        source(content, "first"),
        source(content, "second"),
        source(content, "under another label", "blue"),
        *sources("amber", 3, start=1),
        source(content, "third"),
    ]
    made, skipped = run(given, session)
    assert made is not None
    assert made.counts().tolist() == [4, 1]
    assert [(one.name, one.label, one.reason) for one in skipped] == [
        ("second", "amber", "DUPLICATE"),
        ("third", "amber", "DUPLICATE"),
    ]
    assert all("first" in one.message for one in skipped)


def test_duplicates_of_one_name_are_named(session: Session) -> None:
    """Of two equal images that bear the same name, the later one is skipped like any other."""
    made, skipped = run([source(picture("amber", 0), "IMG_1.jpg")] * 2, session)
    assert made is not None
    assert len(made) == 1
    assert [(one.name, one.reason) for one in skipped] == [("IMG_1.jpg", "DUPLICATE")]


def test_the_order_of_sources_does_not_matter(session: Session) -> None:
    """Sources in any order, in any number of chunks and threads, give shards of equal bytes."""
    given = [one for label in ("amber", "blue", "green") for one in sources(label, 50)]
    want, _ = run(given, session)
    assert want is not None
    for seed, cores in enumerate((1, 2, 5)):
        order = np.random.default_rng(seed).permutation(len(given))
        found, _ = embed([given[index] for index in order], session, tiny.SPEC, cores=cores)
        assert found is not None
        assert tiny.shard_files(found) == tiny.shard_files(want)


def test_progress_is_told_once_an_image_in_the_callers_thread(session: Session) -> None:
    """on_image is called for used, bad and duplicate images alike, where embed was called."""
    given = [*sources("amber", 150), source(b"bad"), *sources("amber", 1)]
    threads: list[threading.Thread] = []
    run(given, session, on_image=lambda: threads.append(threading.current_thread()))
    assert len(threads) == len(given)
    assert set(threads) == {threading.current_thread()}


def test_progress_can_stop_it(session: Session) -> None:
    """What on_image raises, such as a cancellation, comes out, and little more is read."""
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


def test_no_sources_are_no_exemplars(session: Session) -> None:
    """A generator that yields nothing gives None and nothing skipped."""
    called: list[None] = []
    found = embed(
        (one for one in list[ImageSource]()),
        session,
        tiny.SPEC,
        cores=2,
        on_image=lambda: called.append(None),
    )
    assert found == (None, [])
    assert not called


def test_memory_is_bounded(session: Session) -> None:
    """Sources are taken from their generator as they are needed, not all at once."""
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


def test_slow_image_holds_up_only_itself(session: Session) -> None:
    """While one image takes its time, the others in flight are embedded."""
    given = sources("amber", 2 * module.WINDOW + 30)
    later = threading.Event()
    slow, last = 20, 20 + 2 * module.WINDOW - 2

    def wait() -> bytes:
        assert later.wait(30)
        return picture("blue", 0)

    def tell() -> bytes:
        later.set()
        return picture("blue", 1)

    given[slow] = ImageSource(name="slow", label="blue", read=wait)
    given[last] = ImageSource(name="last", label="blue", read=tell)
    made, skipped = run(given, session)
    assert made is not None
    assert made.counts().tolist() == [len(given) - 2, 2]
    assert not skipped


class Kept:
    """A cache in memory."""

    def __init__(self) -> None:
        self.rows: dict[bytes, EmbeddedRow] = {}

    def get(self, content: bytes) -> EmbeddedRow | None:
        """Return what was put."""
        return self.rows.get(content)

    def put(self, content: bytes, row: EmbeddedRow) -> None:
        """Keep it."""
        self.rows[content] = row


def test_cache_is_asked_by_content(session: Session) -> None:
    """A row is found by the file's sha256, whatever the name and label, and nothing is computed."""
    cache, fake = Kept(), Fake()
    first, _ = embed(sources("amber", 5), session, tiny.SPEC, cores=2, cache=cache)
    assert cache.rows.keys() == {sha256(one).digest() for one in pictures("amber", 5)}
    renamed = [source(one, f"copy-{at}", "blue") for at, one in enumerate(pictures("amber", 5))]
    second, _ = embed(renamed, fake, tiny.SPEC, cores=2, cache=cache)  # type: ignore[arg-type]  # all that is used of a session
    assert first is not None
    assert second is not None
    assert second.embeddings.tobytes() == first.embeddings.tobytes()
    assert (second.labels, fake.batches) == (("blue",), [])


def test_bad_images_are_not_cached(session: Session) -> None:
    """What could not be used is looked at again next time, and named again."""
    cache = Kept()
    for _ in range(2):
        _, skipped = embed([source(b"bad")], session, tiny.SPEC, cores=1, cache=cache)
        assert [one.reason for one in skipped] == ["IMAGE_UNREADABLE"]
    assert not cache.rows


class Fake:
    """A backbone that notes the batches it is given."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return one number an image."""
        self.batches.append(batch.shape)
        return batch.reshape(len(batch), -1)[:, :1].astype(np.float32)


def test_images_are_embedded_alone() -> None:
    """Each image is a batch of its own, so that its embedding depends on no neighbour."""
    fake = Fake()
    made, _ = run(sources("amber", 5), fake)  # type: ignore[arg-type]  # all that is used of a session
    assert made is not None
    assert fake.batches == [(1, 16, 16, 3)] * 5
    assert all(one.tobytes() != other.tobytes() for one, other in pairwise(made.digests))
