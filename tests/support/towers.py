"""Tiny image towers with random weights, in folders as ``save_pretrained`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from topwork_trainer.backbones import towers

SIDE = 32

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

FAMILIES = ("clip", "dinov2", "dinov3", "siglip", "vit")


def model(family: str) -> Any:
    """Return the model of a family as it is published, with seeded weights, in eval mode.

    CLIP has a text tower, ViT a classifier; DINOv2 was trained with images of twice the size.
    """
    transformers = towers.package()
    torch.manual_seed(0)
    native = {"image_size": SIDE, **_SHAPE}
    made: Any
    if family == "clip":
        config = transformers.CLIPConfig(text_config=_TEXT, vision_config=native)
        made = transformers.CLIPModel(config)
    elif family == "dinov2":
        config = transformers.Dinov2Config(**{**native, "image_size": 2 * SIDE})
        made = transformers.Dinov2Model(config)
    elif family == "dinov3":
        made = transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**native, num_register_tokens=4)
        )
    elif family == "siglip":
        made = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**native))
    else:
        made = transformers.ViTForImageClassification(transformers.ViTConfig(**native))
    with torch.no_grad():  # published weights are larger than a new network's
        for weights in made.parameters():
            weights.copy_(torch.randn_like(weights) * (0.2 if weights.ndim > 1 else 0.1))
    return made.eval()


def processor(family: str) -> Any:
    """Return the image processor that the family is published with."""
    transformers = towers.package()
    square = {"height": SIDE, "width": SIDE}
    if family == "clip":
        return transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    if family == "dinov2":
        return transformers.BitImageProcessor(
            size={"shortest_edge": 40},
            crop_size=square,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
    kinds = {
        "dinov3": transformers.DINOv3ViTImageProcessor,
        "siglip": transformers.SiglipImageProcessor,
        "vit": transformers.ViTImageProcessor,
    }
    return kinds[family](size=square)


def save(family: str, folder: Path) -> Path:
    """Write model and processor of a family into a folder and return it."""
    model(family).save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder
