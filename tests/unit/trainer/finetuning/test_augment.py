"""Augmentation of training images; validation images are preprocessed as in serving."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import encode, picture

from topwork.errors import ImageError
from topwork.inputs.image import preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer.finetuning.augment import EvalPreset, TrainPreset

SPEC = PreprocessSpec(resize=36, crop=32)
STILL: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": 1.0, "jitter": 0.0}


def view(preset: TrainPreset, content: bytes, seed: int = 0) -> torch.Tensor:
    return preset(content, np.random.default_rng(seed))


def halves() -> bytes:
    """Return a picture whose left half is black and right half white."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = 255
    return encode(Image.fromarray(pixels))


def test_eval_preset_equals_preprocessing_of_serving() -> None:
    """The view for validation is, byte for byte, the input that the server computes."""
    content = picture("amber", 0)
    assert np.array_equal(EvalPreset(spec=SPEC)(content).numpy(), preprocess(content, SPEC))


def test_train_view_has_size_and_type_of_the_backbone_input() -> None:
    """A training view has the shape and dtype of a serving view."""
    seen = view(TrainPreset(spec=SPEC), picture("amber", 0))
    assert (seen.shape, seen.dtype) == ((32, 32, 3), torch.uint8)


def test_equal_seeds_give_equal_views() -> None:
    """A view depends only on the image and the generator; another seed gives another view."""
    preset, content = TrainPreset(spec=SPEC), picture("amber", 0)
    assert torch.equal(view(preset, content, 1), view(preset, content, 1))
    assert not torch.equal(view(preset, content, 1), view(preset, content, 2))


def test_views_do_not_use_torchs_generator() -> None:
    """The state of torch's generator, which threads share, does not change."""
    before = torch.get_rng_state()
    for seed in range(5):
        view(TrainPreset(spec=SPEC), picture("amber", 0), seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_mirror_swaps_left_and_right() -> None:
    """About half of the views are mirrored, and otherwise unchanged."""
    preset = TrainPreset(spec=SPEC, **STILL)
    views = [view(preset, halves(), seed) for seed in range(40)]
    dark_left = [bool(seen[:, :8].float().mean() < seen[:, -8:].float().mean()) for seen in views]
    assert 10 < sum(dark_left) < 30
    first, other = views[dark_left.index(True)], views[dark_left.index(False)]
    assert torch.equal(first.flip(1), other)


def test_no_view_is_mirrored_without_mirror() -> None:
    """With ``mirror=False`` no view swaps left and right."""
    preset = TrainPreset(spec=SPEC, mirror=False)
    for seed in range(40):
        seen = view(preset, halves(), seed).float()
        assert seen[:, :4].mean() <= seen[:, -4:].mean()


def test_jitter_bounds_the_brightness() -> None:
    """The brightness of a grey picture varies by at most the jitter."""
    grey = encode(Image.new("RGB", (40, 40), (100, 100, 100)))
    preset = TrainPreset(spec=SPEC, jitter=0.2)
    means = [float(view(preset, grey, seed).float().mean()) for seed in range(30)]
    assert 79 <= min(means) < 95
    assert 105 < max(means) <= 121


def test_train_view_without_augmentation_is_close_to_the_serving_view() -> None:
    """Decoding at a higher resolution and scaling down does not shift the picture."""
    y, x = np.mgrid[:80, :100]
    smooth = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.sin(y / 7), x + y], axis=-1)
    content = encode(Image.fromarray(smooth.astype(np.uint8)))
    seen = view(TrainPreset(spec=SPEC, mirror=False, **STILL), content).numpy()
    difference = np.abs(seen.astype(int) - preprocess(content, SPEC).astype(int))
    assert difference.mean() < 3


def test_presets_refuse_a_damaged_image() -> None:
    """Both presets raise the decoder's ImageError."""
    buffer = io.BytesIO(picture("amber", 0)[:100])
    for preset in (EvalPreset(spec=SPEC), lambda c: view(TrainPreset(spec=SPEC), c)):
        with pytest.raises(ImageError):
            preset(buffer.getvalue())
