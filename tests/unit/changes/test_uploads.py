"""Limits, timeouts and storage of uploads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support import tiny, virtual_time

from topwork.bundle.store import Repository
from topwork.changes import uploads as uploads_module
from topwork.changes.jobs import SkippedUpload, Upload
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.changes.uploads import Taken, Uploads
from topwork.errors import DeadlinePassed, InvalidInput, QuotaExceeded, Unavailable
from topwork.limits import ServerLimits
from topwork.storage import files

LIMITS = ServerLimits(
    max_upload_bytes=100,
    max_image_bytes=60,
    max_images_per_upload=4,
)
IMAGES = Taken("colours", tiny.SPEC)
REQUEST = ChangeRequest(kind="add_class", model="colours", label="violet")


class Quota:
    """A quota of ``most`` bytes that records its calls."""

    def __init__(self, most: int = 10**6) -> None:
        self.most = most
        self.calls: list[tuple[int, int, int]] = []

    def check(self, total: int, coming: int, images: int) -> None:
        """Raise QuotaExceeded above ``most``."""
        self.calls.append((total, coming, images))
        if total > self.most:
            raise QuotaExceeded(f"{total} are too many", subject="models/x")


def batch(*lengths: int, name: str = "") -> list[UploadedImage]:
    """Return a batch of images of these lengths."""
    return [UploadedImage(name=name, content=b"x" * length) for length in lengths]


async def stream(*items: UploadItem) -> AsyncIterator[UploadItem]:
    """Yield items without pauses."""
    for item in items:
        yield item


def store(
    root: Path, *items: UploadItem, quota: Quota | None = None, labels: tuple[str, ...] = ()
) -> tuple[tuple[Upload, ...], tuple[SkippedUpload, ...], int]:
    """Return the stored images, the refused images and the bytes of an upload."""
    uploads = Uploads(Repository(root), LIMITS)
    return asyncio.run(uploads.store(stream(*items), quota or Quota(), labels, taken=IMAGES))


def count_images(root: Path) -> int:
    """Return the number of stored images."""
    return len(list((root / "images").glob("*")))


@pytest.mark.parametrize(
    ("batches", "reason", "message"),
    [
        ((batch(1, 2), batch(3, 4, 5)), "TOO_MANY_IMAGES", "more than 4 images"),
        ((batch(50, 40), batch(11)), "UPLOAD_TOO_LARGE", "more than 100 bytes"),
    ],
)
def test_upload_ends_at_its_limits(
    tmp_path: Path, batches: tuple[list[UploadedImage], ...], reason: str, message: str
) -> None:
    """Images and bytes are counted over all messages; the message above a limit is not stored."""
    with pytest.raises(InvalidInput, match=message) as caught:
        store(tmp_path, *batches)
    assert (caught.value.reason, caught.value.field) == (reason, "images")
    assert count_images(tmp_path) == 2


def test_quota_is_checked_before_a_message_is_stored(tmp_path: Path) -> None:
    """The quota gets the total and the new bytes; a refused message is not stored."""
    quota = Quota(most=60)
    with pytest.raises(QuotaExceeded, match="61 are too many"):
        store(tmp_path, batch(10, 20), batch(30), batch(1), quota=quota)
    assert quota.calls == [(30, 30, 2), (60, 30, 1), (61, 1, 1)]
    assert count_images(tmp_path) == 3


def test_oversized_image_fails_alone(tmp_path: Path) -> None:
    """Its message has its length, and the other images are stored."""
    uploads, refused, size = store(tmp_path, batch(61, 5))
    assert [(image.name, image.reason) for image in refused] == [("images[0]", "IMAGE_TOO_LARGE")]
    assert "61 bytes; the limit is 60" in refused[0].message
    assert [image.name for image in uploads] == ["images[1]"]
    assert size == 66


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((), "the upload has no message"),
        ((batch(1), REQUEST), "the first message has no config"),
    ],
)
def test_upload_must_begin_with_its_request(items: tuple[UploadItem, ...], message: str) -> None:
    """An empty upload, or images before the request, is InvalidInput."""
    uploads = Uploads(Repository(Path("repository")), LIMITS)
    with pytest.raises(InvalidInput, match=message) as caught:
        asyncio.run(uploads.request(stream(*items)))
    assert caught.value.field == "config"


def test_upload_has_only_one_request(tmp_path: Path) -> None:
    """A second request among the images is InvalidInput."""
    with pytest.raises(InvalidInput, match="only the first message may have a config") as caught:
        store(tmp_path, batch(1), REQUEST)
    assert caught.value.field == "config"


def test_upload_without_images_is_refused(tmp_path: Path) -> None:
    """Messages without any image are InvalidInput."""
    with pytest.raises(InvalidInput, match="the upload has no image"):
        store(tmp_path, [], [])


def labelled(*labels: str) -> list[UploadedImage]:
    """Return a batch with an image of each label."""
    return [UploadedImage(name="x", content=b"x", label=label) for label in labels]


def test_images_have_one_of_the_labels(tmp_path: Path) -> None:
    """Stored labels are in composed form, also those of refused images."""
    large = UploadedImage(name="", content=b"x" * 61, label="rose\u0301")
    uploads, refused, _ = store(
        tmp_path, labelled("rose\u0301"), [*labelled("b"), large], labels=("b", "ros\u00e9")
    )
    assert [upload.label for upload in uploads] == ["ros\u00e9", "b"]
    assert [image.label for image in refused] == ["ros\u00e9"]


@pytest.mark.parametrize(
    ("images", "labels", "field", "message"),
    [
        (labelled("b", "c"), ("b",), "images[2].label", "label 'c' is not one of config.labels"),
        (labelled("b", ""), ("b",), "images[2].label", "the label is empty"),
        (labelled("b"), (), "images[1].label", "only images of AddClasses have a label"),
        (labelled("b"), ("a", "b", "d"), "config.labels", "no image of 'd'"),
    ],
)
def test_images_with_other_labels_are_refused(
    tmp_path: Path, images: list[UploadedImage], labels: tuple[str, ...], field: str, message: str
) -> None:
    """Images are counted over all messages; each label needs an image."""
    first = labelled(labels[0] if labels else "")
    with pytest.raises(InvalidInput, match=message) as caught:
        store(tmp_path, first, images, labels=labels)
    assert caught.value.field == field


def test_long_upload_renews_the_mtimes_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next message renews all stored images, so that gc spares them."""
    monkeypatch.setattr(uploads_module, "RENEW_SECONDS", 0.0)

    async def slowly() -> AsyncIterator[UploadItem]:
        yield batch(1, 2)
        for path in (tmp_path / "images").iterdir():
            os.utime(path, times=(0, 0))
        yield batch(3)

    uploads = Uploads(Repository(tmp_path), LIMITS)
    asyncio.run(uploads.store(slowly(), Quota(), taken=IMAGES))
    assert min(path.stat().st_mtime for path in (tmp_path / "images").iterdir()) > 0


def test_holding_deleted_images_raises_unavailable(tmp_path: Path) -> None:
    """The message says to upload again, before the operation is accepted."""

    async def scenario() -> None:
        uploads = Uploads(Repository(tmp_path), LIMITS)
        images, _, _ = await uploads.store(stream(batch(1, 2)), Quota(), taken=IMAGES)
        next((tmp_path / "images").iterdir()).unlink()
        async with uploads.holding(images):
            raise AssertionError("deleted images were held")

    with pytest.raises(Unavailable, match=r"is missing: .* upload again") as caught:
        asyncio.run(scenario())
    assert caught.value.reason == "UPLOAD_EXPIRED"


def test_cancelled_holding_releases_the_lock(tmp_path: Path) -> None:
    """An upload that is cancelled while it waits for the lock leaves it free."""
    repository = Repository(tmp_path)
    repository.put_image(b"image")

    async def scenario() -> None:
        uploads = Uploads(repository, LIMITS)
        images = (Upload(name="a", digest=files.sha256(b"image")),)
        with files.locked(repository.root / ".lock"):
            holding = asyncio.create_task(uploads.holding(images).__aenter__())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(holding, 0.1)
        await asyncio.to_thread(wait_for_lock, repository)

    asyncio.run(scenario())


def wait_for_lock(repository: Repository) -> None:
    """Wait until the repository's lock is free."""
    with files.locked(repository.root / ".lock"):
        pass


def upload_slowly(root: Path, *, pause: float, length: int, count: int) -> float:
    """Upload ``count`` messages, each after a pause; return the seconds that it took."""

    async def batches() -> AsyncIterator[UploadItem]:
        yield batch(0)
        for _ in range(count):
            await asyncio.sleep(pause)
            yield batch(length)

    async def scenario() -> float:
        uploads = Uploads(Repository(root), ServerLimits(max_images_per_upload=10**6))
        await uploads.store(batches(), Quota(10**9), taken=IMAGES)
        return asyncio.get_running_loop().time()

    return virtual_time.run(scenario())


def test_silent_upload_times_out(tmp_path: Path) -> None:
    """A minute without a message ends any upload."""
    with pytest.raises(DeadlinePassed, match="sent nothing for 60 s") as caught:
        upload_slowly(tmp_path, pause=61.0, length=10**6, count=1)
    assert caught.value.reason == "UPLOAD_SILENT"


def test_slow_upload_times_out(tmp_path: Path) -> None:
    """A byte every 50 s is below the minimum rate after a minute of waiting in total."""
    with pytest.raises(DeadlinePassed, match=r"sent nothing for 10 s; .* 256 bytes a second"):
        upload_slowly(tmp_path, pause=50.0, length=1, count=2)


def test_upload_at_the_minimum_rate_continues(tmp_path: Path) -> None:
    """A photo of 13 KB every 50 s is 260 bytes per second, which may take an hour."""
    assert upload_slowly(tmp_path, pause=50.0, length=13_000, count=75) == pytest.approx(3750.0)


def test_slow_upload_times_out_after_a_burst(tmp_path: Path) -> None:
    """A burst does not extend the minute of waiting."""

    async def batches() -> AsyncIterator[UploadItem]:
        yield batch(0)
        yield batch(10**6)
        for _ in range(2):
            await asyncio.sleep(50.0)
            yield batch(1)

    uploads = Uploads(Repository(tmp_path), ServerLimits())
    with pytest.raises(DeadlinePassed, match="sent nothing for 10 s"):
        virtual_time.run(uploads.store(batches(), Quota(10**9), taken=IMAGES))


def test_upload_without_a_first_message_times_out() -> None:
    """The first message must come within a minute, too."""

    async def silent() -> AsyncIterator[UploadItem]:
        await asyncio.sleep(61.0)
        yield REQUEST

    with pytest.raises(DeadlinePassed):
        virtual_time.run(Uploads(Repository(Path("repository")), LIMITS).request(silent()))
