"""Images arrive in the order asked for, whichever thread is faster, and few at a time."""

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
    with ThreadPoolExecutor(2) as made:
        yield made


def photo(row: int) -> ImageSource:
    return ImageSource(name=f"photo {row}", label="a", read=lambda: bytes([row]))


def as_view(content: bytes, row: int) -> Tensor:
    return torch.tensor([content[0], row], dtype=torch.uint8)


def test_rows_and_their_views_arrive_in_order(pool: ThreadPoolExecutor) -> None:
    """Each row comes with its own image's view, in the order asked for; the last batch is short."""
    photos = [photo(row) for row in range(7)]
    rows = [6, 0, 5, 1, 4]
    made = list(batches(pool, photos, rows, as_view, size=2))
    assert [batch.tolist() for batch, _ in made] == [[6, 0], [5, 1], [4]]
    assert torch.cat([views for _, views in made]).tolist() == [[row, row] for row in rows]


def test_a_slow_image_changes_no_order(pool: ThreadPoolExecutor) -> None:
    """The first image is ready last, and still comes first."""
    last_is_done = Event()

    def view(content: bytes, row: int) -> Tensor:
        if row == 0:
            assert last_is_done.wait(10)
        if row == 3:
            last_is_done.set()
        return as_view(content, row)

    made = batches(pool, [photo(row) for row in range(4)], range(4), view, size=2)
    assert torch.cat([views for _, views in made])[:, 1].tolist() == [0, 1, 2, 3]


def test_few_images_are_decoded_ahead(pool: ThreadPoolExecutor) -> None:
    """When the first batch of two is there, at most two more batches have been begun."""
    seen: list[int] = []

    def view(content: bytes, row: int) -> Tensor:
        seen.append(row)
        return as_view(content, row)

    made = batches(pool, [photo(row) for row in range(100)], range(100), view, size=2)
    next(made)
    made.close()
    pool.shutdown()
    assert len(seen) <= 6


def test_an_image_that_cannot_be_read_is_named(pool: ThreadPoolExecutor) -> None:
    """A missing file and a damaged image end in an error that names the image and the reason."""

    def gone() -> bytes:
        raise FileNotFoundError("no such file")

    def damaged(content: bytes, row: int) -> Tensor:
        raise ImageError(f"row {row} ({len(content)} bytes) is cut off")

    missing = ImageSource(name="missing.jpg", label="a", read=gone)
    with pytest.raises(InvalidInput, match=r"missing.jpg cannot be read: no such file"):
        list(batches(pool, [missing], [0], as_view, size=1))
    with pytest.raises(InvalidInput, match=r"photo 3 cannot be read: row 0 \(1 bytes\) is cut off"):
        list(batches(pool, [photo(3)], [0], damaged, size=1))
