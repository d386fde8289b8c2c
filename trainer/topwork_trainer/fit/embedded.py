"""Fit on the parts of an embedding run, and the check of its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from topwork.errors import InvalidInput
from topwork_trainer.embedding.photos import EmbeddedPhotos, read_photos

if TYPE_CHECKING:
    from topwork_trainer.fit.fit import FitConfig

_NEED_PHOTOS = {
    "space": "--space",
    "classes": "--classes",
    "test": "--test",
    "backbone": "--backbone",
    "weights": "--weights",
    "image_size": "--image-size",
    "views": "--views",
    "finetuning": "--unfreeze",
    "precision": "--precision",
    "keep_images": "--keep-images",
    "preview_pixels": "--preview-pixels",
}
"""Names of the settings that need photos, or that the embedding run has chosen, and options."""


def read_embedded(config: FitConfig) -> EmbeddedPhotos:
    """Return the photos of an embedding run, ``config.data``.

    Raises InvalidInput for settings that need the photos, or that differ from those of the run; and
    as ``read_photos``.
    """
    default = type(config)(data=config.data, model=config.model, repository=config.repository)
    for name, option in _NEED_PHOTOS.items():
        if getattr(config, name) != getattr(default, name):
            raise InvalidInput(
                f"{option} cannot be given with --embeddings: `topwork-train embed` has read the "
                "photos, with its own settings",
                field=name,
            )
    return read_photos(str(config.data))
