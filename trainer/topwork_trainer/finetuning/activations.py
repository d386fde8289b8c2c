"""Activations of a frozen stem, computed once per view, in a temporary file. Imports torch."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork.errors import ImageError, InvalidInput, NotReady
from topwork.inputs.image import Pixels, preprocess
from topwork.inputs.image_source import ImageSource
from topwork.runtime.backend import open_session
from topwork.runtime.cores import available_cores
from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.export import to_onnx
from topwork_trainer.finetuning.augment import TrainPreset
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.finetuning.split import SplitBackbone

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Activations of all views of N photos, float16, in a file without a name."""

    file: int
    """File descriptor; views of a photo follow each other."""
    width: int
    """Number of values of a view."""
    plain: int
    """Number of plain views, the first ones: 1, or 2 with the mirror image."""
    augmented: int
    """Number of augmented views, after the plain ones."""

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64]) -> Tensor:
        """Return a view of each row, float16 (n, width)."""
        values = np.empty((len(rows), self.width), dtype=np.float16)
        for value, row, view in zip(values, rows, views, strict=True):
            found = os.preadv(self.file, [value.data], self._offset(int(row), int(view)))
            assert found == value.nbytes, "a view of activations was not written; this is a bug"
        return torch.from_numpy(values)

    def write(self, row: int, view: int, value: NDArray[np.float32]) -> None:
        """Store a view (width,). Raises NotReady if the disk is full, or the value overflows."""
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if not np.isfinite(half).all():
            raise NotReady(
                f"activations of the frozen stages are too large for float16: {abs(value).max():g}",
                reason="ACTIVATIONS_TOO_LARGE",
            )
        try:
            written = os.pwrite(self.file, half.tobytes(), self._offset(row, view))
        except OSError as error:
            raise self._full(error) from error
        if written < half.nbytes:  # the disk became full
            raise self._full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _offset(self, row: int, view: int) -> int:
        return 2 * self.width * (row * (self.plain + self.augmented) + view)

    def _full(self, error: OSError) -> NotReady:
        return NotReady(
            f"activations cannot be stored in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR"
            " to a folder with more space, or use fewer augmented views",
            reason="DISK_FULL",
        )


@contextmanager
def cached(
    backbone: TorchBackbone,
    parts: SplitBackbone,
    sources: Sequence[ImageSource],
    config: FinetuneConfig,
    *,
    seed: int,
    on_image: Callable[[], None],
) -> Iterator[Activations]:
    """Yield the stem's activations of the views of all photos, a row a photo.

    The file has no name, so it is gone at the end of the block or of the process, however it ends.
    There are fewer augmented views than configured if they do not fit in ``activations_gib``.
    Raises InvalidInput if a photo cannot be read or not even one augmented view fits, NotReady if
    the disk is full.
    """
    width = sum(int(np.prod(shape)) for shape in parts.shapes)
    augmented = _fitting(len(sources), width, backbone.views, config)
    session = open_session(
        to_onnx(_Stem(backbone, parts.stem), backbone, output="activations"), output="activations"
    )
    preset = TrainPreset(spec=backbone.spec, mirror=config.mirror)
    with tempfile.TemporaryFile() as file, ThreadPoolExecutor(available_cores()) as pool:
        activations = Activations(
            file=file.fileno(), width=width, plain=backbone.views, augmented=augmented
        )

        def store(row: int) -> None:
            for view, pixels in enumerate(_views(sources[row], row, activations, preset, seed)):
                activations.write(row, view, session.run(pixels[None])[0])

        try:
            for _ in pool.map(store, range(len(sources))):
                on_image()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        yield activations


def _fitting(photos: int, width: int, plain: int, config: FinetuneConfig) -> int:
    """Return the number of augmented views that fit in the bound, at most the configured number."""
    views = int(config.activations_gib * GIB) // (2 * width * photos)
    least = plain + min(1, config.augmented_views)
    if views < least:
        raise InvalidInput(
            f"activations of {photos} photos take {least * 2 * width * photos / GIB:.3g} GiB, the"
            f" limit is {config.activations_gib:g}: unfreeze fewer stages than {config.unfreeze!r},"
            " or raise the limit",
            field="activations_gib",
        )
    return min(config.augmented_views, views - plain)


def _views(
    source: ImageSource, row: int, activations: Activations, preset: TrainPreset, seed: int
) -> Iterator[Pixels]:
    """Yield the plain and the augmented views of a photo, uint8 (crop, crop, 3)."""
    try:
        content = source.read()
        pixels = preprocess(content, preset.spec)
        yield pixels
        if activations.plain == 2:
            yield np.ascontiguousarray(pixels[:, ::-1])
        for view in range(activations.augmented):
            yield preset(content, np.random.default_rng([seed, row, view])).contiguous().numpy()
    except (OSError, ImageError) as error:
        raise InvalidInput(
            f"{source.name} cannot be read: {error}; remove it and start again", field="data"
        ) from error


class _Stem(nn.Module):
    """Maps images uint8 (N, crop, crop, 3), RGB, to activations float32 (N, width)."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: TorchBackbone, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).float()
        parts = self.stem((pixels - self.mean) / self.std)
        return torch.cat([part.flatten(1) for part in parts], dim=1)
