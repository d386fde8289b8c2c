"""Data loader: images arrive in order, and few are decoded ahead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from torch import Tensor

from topwork.errors import ImageError, InvalidInput
from topwork.training.embed import ImageSource
from topwork_trainer.finetuning.feed import batches


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def photo(row: int) -> ImageSource:
    return ImageSource(name=f"photo {row}", label="a", read=lambda: bytes([row]))


def as_view(content: bytes, row: int) -> Tensor:
    return torch.tensor([content[0], row], dtype=torch.uint8)


def test_rows_and_their_views_arrive_in_order(pool: ThreadPoolExecutor) -> None:
    """Each row comes with the view of its image, in the given order; the last batch is short."""
    photos = [photo(row) for row in range(7)]
    rows = [6, 0, 5, 1, 4]
    loaded = list(batches(pool, photos, rows, as_view, size=2))
    assert [batch.tolist() for batch, _ in loaded] == [[6, 0], [5, 1], [4]]
    assert torch.cat([views for _, views in loaded]).tolist() == [[row, row] for row in rows]


def test_slow_image_does_not_change_the_order(pool: ThreadPoolExecutor) -> None:
    """An image that is decoded last still comes first."""
    last_is_done = Event()

    def view(content: bytes, row: int) -> Tensor:
        if row == 0:
            assert last_is_done.wait(10)
        if row == 3:
            last_is_done.set()
        return as_view(content, row)

    loaded = batches(pool, [photo(row) for row in range(4)], range(4), view, size=2)
    assert torch.cat([views for _, views in loaded])[:, 1].tolist() == [0, 1, 2, 3]


def test_few_images_are_decoded_ahead(pool: ThreadPoolExecutor) -> None:
    """When the first batch of two images is ready, decoding of at most two more has begun."""
    seen: list[int] = []

    def view(content: bytes, row: int) -> Tensor:
        seen.append(row)
        return as_view(content, row)

    loaded = batches(pool, [photo(row) for row in range(100)], range(100), view, size=2)
    next(loaded)
    loaded.close()
    pool.shutdown()
    assert len(seen) <= 6


def test_unreadable_image_is_named(pool: ThreadPoolExecutor) -> None:
    """The error of a missing or damaged image has its name and the reason."""

    def gone() -> bytes:
        raise FileNotFoundError("no such file")

    def damaged(content: bytes, row: int) -> Tensor:
        raise ImageError(f"row {row} ({len(content)} bytes) is cut off")

    missing = ImageSource(name="missing.jpg", label="a", read=gone)
    with pytest.raises(InvalidInput, match=r"missing.jpg cannot be read: no such file"):
        list(batches(pool, [missing], [0], as_view, size=1))
    with pytest.raises(InvalidInput, match=r"photo 3 cannot be read: row 0 \(1 bytes\) is cut off"):
        list(batches(pool, [photo(3)], [0], damaged, size=1))
