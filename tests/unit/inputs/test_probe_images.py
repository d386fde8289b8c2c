"""Probe images: equal bytes for ever, and extreme contrasts."""

from __future__ import annotations

import hashlib

import pytest

from topwork.inputs.probe_images import LATEST, probe_images


@pytest.mark.parametrize(
    ("crop", "digest"),
    [
        (224, "fd194997c5adec4037c99ccb04cfb848f51283af281e542fa9c62f1a8128bc95"),
        (288, "6e87934b1e99767e78a94197745cff4f875b97fb250df09c5aadc52ed9bc9e54"),
        (16, "dca8175c06fe13c964725f88af2c7dbffb79ac82dad7f55d6f7d785887c5f597"),
    ],
)
def test_probe_images_never_change(crop: int, digest: str) -> None:
    """Bundles refer to the pixels of ``noise-1`` by its name: other pixels need another name."""
    images = probe_images("noise-1", crop)
    assert images.shape == (4, crop, crop, 3)
    assert hashlib.sha256(images.tobytes()).hexdigest() == digest


def test_probe_images_have_extreme_and_different_pixels() -> None:
    """Each image has black and white, and no two are alike, as saturation needs large values."""
    images = probe_images(LATEST, 64)
    for image in images:
        assert (image.min(), image.max()) == (0, 255)
        assert image.std() > 80
    assert len({image.tobytes() for image in images}) == len(images)


def test_probe_images_are_read_only() -> None:
    """The images are shared by all callers in a process."""
    assert not probe_images(LATEST, 16).flags.writeable


def test_unknown_probe_images_are_a_key_error() -> None:
    """A later release may have images that this one does not know."""
    with pytest.raises(KeyError):
        probe_images("noise-2", 16)
