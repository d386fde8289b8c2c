"""Uploads stay within their bounds, whatever a client sends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support import virtual_time

from topwork.bundle import files
from topwork.bundle.store import Repository
from topwork.changes import uploads as uploading
from topwork.changes.jobs import SkippedUpload, Upload
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.changes.uploads import Uploads
from topwork.errors import DeadlinePassed, InvalidInput, QuotaExceeded, Unavailable
from topwork.limits import ServerLimits

LIMITS = ServerLimits(
    max_upload_bytes=100,
    max_image_bytes=60,
    max_images_per_upload=4,
)
REQUEST = ChangeRequest(kind="add_class", model="colours", label="violet")


class Quota:
    """Has room for so many bytes, and notes what it was asked."""

    def __init__(self, most: int = 10**6) -> None:
        self.most = most
        self.asked: list[tuple[int, int, int]] = []

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded beyond the most."""
        self.asked.append((total, coming, images))
        if total > self.most:
            raise QuotaExceeded(f"{total} are too many", subject="models/x")


def part(*lengths: int, name: str = "") -> list[UploadedImage]:
    """Return a portion of images of these lengths."""
    return [UploadedImage(name=name, content=b"x" * length) for length in lengths]


async def sent(*items: UploadItem) -> AsyncIterator[UploadItem]:
    """Yield items at once."""
    for item in items:
        yield item


def stored(
    root: Path, *items: UploadItem, quota: Quota | None = None
) -> tuple[tuple[Upload, ...], tuple[SkippedUpload, ...], int]:
    """Return what an upload of ``items`` gives."""
    uploads = Uploads(Repository(root), LIMITS)
    return asyncio.run(uploads.store(sent(*items), quota or Quota()))


def files_of(root: Path) -> int:
    """Return how many images are stored."""
    return len(list((root / "images").glob("*")))


@pytest.mark.parametrize(
    ("parts", "reason", "said"),
    [
        ((part(1, 2), part(3, 4, 5)), "TOO_MANY_IMAGES", "more than 4 images"),
        ((part(50, 40), part(11)), "UPLOAD_TOO_LARGE", "more than 100 bytes"),
    ],
)
def test_an_upload_ends_where_it_is_too_large(
    tmp_path: Path, parts: tuple[list[UploadedImage], ...], reason: str, said: str
) -> None:
    """Images and bytes are counted over all messages; the one that is too much is not stored."""
    with pytest.raises(InvalidInput, match=said) as caught:
        stored(tmp_path, *parts)
    assert (caught.value.reason, caught.value.field) == (reason, "images")
    assert files_of(tmp_path) == 2


def test_quota_is_checked_before_a_message_is_stored(tmp_path: Path) -> None:
    """It is asked for all bytes so far and for those that come; what it refuses is not stored."""
    quota = Quota(most=60)
    with pytest.raises(QuotaExceeded, match="61 are too many"):
        stored(tmp_path, part(10, 20), part(30), part(1), quota=quota)
    assert quota.asked == [(30, 30, 2), (60, 30, 1), (61, 1, 1)]
    assert files_of(tmp_path) == 3


def test_an_image_that_is_too_large_fails_alone(tmp_path: Path) -> None:
    """It is named with its length, and the others are stored."""
    uploads, refused, size = stored(tmp_path, part(61, 5))
    assert [(one.name, one.reason) for one in refused] == [("images[0]", "IMAGE_TOO_LARGE")]
    assert "61 bytes; the limit is 60" in refused[0].message
    assert [one.name for one in uploads] == ["images[1]"]
    assert size == 66


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ((), "the upload has no message"),
        ((part(1), REQUEST), "the first message has no config"),
    ],
)
def test_an_upload_begins_with_its_request(items: tuple[UploadItem, ...], said: str) -> None:
    """Without a message, or with images before the request, it is InvalidInput."""
    uploads = Uploads(Repository(Path("repository")), LIMITS)
    with pytest.raises(InvalidInput, match=said) as caught:
        asyncio.run(uploads.request(sent(*items)))
    assert caught.value.field == "config"


def test_an_upload_has_one_request(tmp_path: Path) -> None:
    """A second one among the images is InvalidInput."""
    with pytest.raises(InvalidInput, match="only the first message may have a config") as caught:
        stored(tmp_path, part(1), REQUEST)
    assert caught.value.field == "config"


def test_an_upload_has_images(tmp_path: Path) -> None:
    """Messages without a single image are InvalidInput."""
    with pytest.raises(InvalidInput, match="the upload has no image"):
        stored(tmp_path, [], [])


def test_images_of_a_slow_upload_are_kept_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another message comes, all that came before is young again."""
    monkeypatch.setattr(uploading, "RENEW_SECONDS", 0.0)

    async def slowly() -> AsyncIterator[UploadItem]:
        yield part(1, 2)
        for path in (tmp_path / "images").iterdir():
            os.utime(path, times=(0, 0))
        yield part(3)

    uploads = Uploads(Repository(tmp_path), LIMITS)
    asyncio.run(uploads.store(slowly(), Quota()))
    assert min(path.stat().st_mtime for path in (tmp_path / "images").iterdir()) > 0


def test_an_upload_whose_images_were_deleted_fails_when_it_ends(tmp_path: Path) -> None:
    """It is UNAVAILABLE, and says that it must be sent again, before anything is promised."""

    async def ended() -> None:
        uploads = Uploads(Repository(tmp_path), LIMITS)
        images, _, _ = await uploads.store(sent(part(1, 2)), Quota())
        next((tmp_path / "images").iterdir()).unlink()
        async with uploads.holding(images):
            raise AssertionError("it was held")

    with pytest.raises(Unavailable, match=r"is missing: .* upload again") as caught:
        asyncio.run(ended())
    assert caught.value.reason == "UPLOAD_EXPIRED"


def test_a_cancelled_upload_lets_go_of_the_lock(tmp_path: Path) -> None:
    """Who waits to hold images and is cancelled leaves nobody waiting."""
    repository = Repository(tmp_path)
    repository.put_image(b"image")

    async def cancelled() -> None:
        uploads = Uploads(repository, LIMITS)
        images = (Upload(name="a", digest=files.sha256(b"image")),)
        with files.locked(repository.lock):
            holding = asyncio.create_task(uploads.holding(images).__aenter__())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(holding, 0.1)
        await asyncio.to_thread(take, repository)

    asyncio.run(cancelled())


def take(repository: Repository) -> None:
    """Wait until nobody holds the repository's lock."""
    with files.locked(repository.lock):
        pass


def trickled(root: Path, *, pause: float, length: int, count: int) -> float:
    """Upload ``count`` messages with pauses before each; return how many seconds it took."""

    async def parts() -> AsyncIterator[UploadItem]:
        yield part(0)
        for _ in range(count):
            await asyncio.sleep(pause)
            yield part(length)

    async def scenario() -> float:
        uploads = Uploads(Repository(root), ServerLimits(max_images_per_upload=10**6))
        await uploads.store(parts(), Quota(10**9))
        return asyncio.get_running_loop().time()

    return virtual_time.run(scenario())


def test_a_silent_upload_ends(tmp_path: Path) -> None:
    """However much it sent before, a minute of silence is too long."""
    with pytest.raises(DeadlinePassed, match="nothing came for 60 s") as caught:
        trickled(tmp_path, pause=61.0, length=10**6, count=1)
    assert caught.value.reason == "UPLOAD_SILENT"


def test_a_trickle_ends(tmp_path: Path) -> None:
    """A byte every 50 s holds no slot: after a minute of waiting in all it is too slow."""
    with pytest.raises(DeadlinePassed, match=r"nothing came for 10 s; .* 256 bytes a second"):
        trickled(tmp_path, pause=50.0, length=1, count=2)


def test_a_slow_upload_goes_on(tmp_path: Path) -> None:
    """A photo of 13 KB every 50 s is 260 bytes a second: that may take an hour."""
    assert trickled(tmp_path, pause=50.0, length=13_000, count=75) == pytest.approx(3750.0)


def test_a_burst_buys_no_more_than_a_minute(tmp_path: Path) -> None:
    """Whatever came before, a trickle after it ends as soon as any other."""

    async def parts() -> AsyncIterator[UploadItem]:
        yield part(0)
        yield part(10**6)
        for _ in range(2):
            await asyncio.sleep(50.0)
            yield part(1)

    uploads = Uploads(Repository(tmp_path), ServerLimits())
    with pytest.raises(DeadlinePassed, match="nothing came for 10 s"):
        virtual_time.run(uploads.store(parts(), Quota(10**9)))


def test_an_upload_that_never_begins_ends() -> None:
    """The first message has a minute, too."""

    async def silent() -> AsyncIterator[UploadItem]:
        await asyncio.sleep(61.0)
        yield REQUEST

    with pytest.raises(DeadlinePassed):
        virtual_time.run(Uploads(Repository(Path("repository")), LIMITS).request(silent()))
