"""Cached activations: right, bounded, and gone however the process ends."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_backbone import backbone, photos

from topwork.errors import InvalidInput, NotReady
from topwork.inputs.image import preprocess
from topwork.inputs.image_source import ImageSource
from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.export import EmbeddingModel
from topwork_trainer.finetuning.activations import GIB, Activations, cached
from topwork_trainer.finetuning.augment import TrainPreset
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.finetuning.split import SplitBackbone, split

PHOTOS = photos(["amber", "blue"], 3)


@functools.cache
def parts() -> SplitBackbone:
    return split(backbone(), {"features.4.weight", "features.4.bias"})


@contextmanager
def caching(
    sources: Sequence[ImageSource] = PHOTOS,
    config: FinetuneConfig | None = None,
    *,
    whole: TorchBackbone | None = None,
    seed: int = 0,
) -> Iterator[Activations]:
    with cached(
        whole or backbone(),
        parts(),
        sources,
        config or FinetuneConfig(augmented_views=2),
        seed=seed,
        on_image=lambda: None,
    ) as activations:
        yield activations


def read(activations: Activations, row: int, view: int) -> torch.Tensor:
    value = activations.read(np.array([row]), np.array([view])).float()
    return value.reshape(1, *parts().shapes[0])


def embedded(pixels: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        embeddings: torch.Tensor = EmbeddingModel(backbone())(torch.from_numpy(pixels.copy())[None])
    return embeddings


def test_top_of_cached_activations_gives_the_embeddings() -> None:
    """Each view of each photo has its own place, and float16 is precise enough."""
    spec = backbone().spec
    with caching() as activations, torch.inference_mode():
        assert (activations.plain, activations.augmented) == (1, 2)
        for row, photo in enumerate(PHOTOS):
            preset = TrainPreset(spec=spec)
            views = [
                preprocess(photo.read(), spec),
                *(
                    preset(photo.read(), np.random.default_rng([0, row, view])).numpy()
                    for view in range(2)
                ),
            ]
            for view, pixels in enumerate(views):
                got = parts().top(read(activations, row, view))
                torch.testing.assert_close(got, embedded(pixels), atol=2e-3, rtol=2e-3)


def test_backbone_of_two_views_has_two_plain_views() -> None:
    """The second plain view is the mirror image."""
    with caching(whole=backbone(views=2)) as activations, torch.inference_mode():
        assert activations.plain == 2
        mirrored = preprocess(PHOTOS[4].read(), backbone().spec)[:, ::-1]
        got = parts().top(read(activations, 4, 1))
        torch.testing.assert_close(got, embedded(mirrored), atol=2e-3, rtol=2e-3)


def test_fewer_views_are_cached_within_the_bound() -> None:
    """The bound in bytes leaves one augmented view of the four; one view less is an error."""
    width = int(np.prod(parts().shapes[0]))
    config = FinetuneConfig(
        unfreeze="last:1", augmented_views=4, activations_gib=2.5 * 2 * width * 6 / GIB
    )
    with caching(config=config) as activations:
        assert activations.augmented == 1
        assert os.fstat(activations.file).st_size == 2 * 2 * width * 6
    less = dataclasses.replace(config, activations_gib=1.5 * 2 * width * 6 / GIB)
    with (
        pytest.raises(InvalidInput, match="unfreeze fewer stages than 'last:1'"),
        caching(config=less),
    ):
        pass


def test_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the folder, whether the write fails or is cut short."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for pwrite in (full, lambda *_: 10):
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(NotReady, match=rf"{tempfile.gettempdir()}: No space left"), caching():
            pass


def test_activations_beyond_float16_are_an_error() -> None:
    """Activations of 1e6 are refused, and not replaced by infinity."""
    huge = dataclasses.replace(backbone(), std=(1e-4,) * 3)
    with pytest.raises(NotReady, match="too large for float16"), caching(whole=huge):
        pass


def test_unreadable_photo_is_named() -> None:
    """The error of a photo that became unreadable has its name and the reason."""

    def gone() -> bytes:
        raise FileNotFoundError("no such file")

    for read_photo, reason in ((gone, "no such file"), (lambda: b"GIF89a", "6 bytes")):
        damaged = ImageSource(name="amber/damaged.png", label="amber", read=read_photo)
        with (
            pytest.raises(InvalidInput, match=rf"amber/damaged.png cannot be read: .*{reason}"),
            caching([*PHOTOS, damaged]),
        ):
            pass


def test_file_is_gone_after_success_and_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block's end closes the file, and the temporary folder is empty even during the block."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caching() as activations:
        assert os.fstat(activations.file).st_nlink == 0
        assert os.fstat(activations.file).st_dev == tmp_path.stat().st_dev
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(activations.file)
    with pytest.raises(ZeroDivisionError), caching() as activations:
        raise ZeroDivisionError
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(activations.file)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_file_is_gone_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """No activations remain in the temporary folder when a signal ends the process."""
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, __file__, str(int(number))]
    died = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert died.returncode == -number
    assert [file.name for file in tmp_path.iterdir()] == ["cached"]


if __name__ == "__main__":
    with caching() as held:
        assert os.fstat(held.file).st_size > 0
        Path(os.environ["TMPDIR"], "cached").touch()
        os.kill(os.getpid(), int(sys.argv[1]))
