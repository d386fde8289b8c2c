"""What Topwork accepts: sizes and counts, the same in training and serving."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper and lower bounds; every error that one causes names the value and the bound."""

    max_images_per_request: int = 256
    """Images in one Classify request."""
    max_image_bytes: int = 16 * 2**20
    """Length of one encoded image."""
    max_image_pixels: int = 50_000_000
    """Width times height of one image, checked before it is decoded."""
    max_message_bytes: int = 64 * 2**20
    """Length of one gRPC message, in both directions."""
    max_images_per_upload: int = 20_000
    """Images in one AddClass call."""
    min_images_per_label: int = 5
    """Usable images that a label needs."""
    max_label_length: int = 100
    """Length of a label in characters."""
    max_labels: int = 1_000
    """Labels of one model."""


DEFAULT_LIMITS = Limits()
