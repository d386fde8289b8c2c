"""Data of a fit, and the check that its settings have a meaning for the kind of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.spaces import put_space
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.data.vectors import is_vectors
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.printable import file_name
from topwork_trainer import backbones
from topwork_trainer.backbones.prepare import added_names, missing_backbone
from topwork_trainer.data import add_test_set, scan
from topwork_trainer.data.photos import Photos
from topwork_trainer.data.vectors import scan_vectors
from topwork_trainer.fit.embedded import read_embedded
from topwork_trainer.kinds import NOUNS

if TYPE_CHECKING:
    from topwork_trainer.fit.fit import FitConfig

_OF_IMAGES = ("weights", "image_size", "views", "finetuning", "preview_pixels")
"""Settings that only photos have."""
_OF_GRAPHS = ("test", "backbone", "precision")
"""Settings that embeddings do not have."""


PutBackbone: TypeAlias = Callable[[Repository], BackboneInfo]
"""Stores the backbone of data that is embedded already, and returns its description."""


def load_data(config: FitConfig) -> tuple[FitConfig, Photos, PutBackbone | None]:
    """Return the settings, the data to train on, and what stores its backbone if it is embedded.

    Raises InvalidInput.
    """
    if config.embedded:
        given = read_embedded(config)
        pixels = given.plan.preview_pixels
        return replace(config, preview_pixels=pixels), given.photos, given.put_backbone
    photos, space = _scan(config)
    return config, photos, None if space is None else partial(put_space, spec=space)


def _scan(config: FitConfig) -> tuple[Photos, EmbeddingSpec | None]:
    """Return the data to train on, and the space if they are embeddings. Raises InvalidInput."""
    data = config.data
    assert isinstance(data, Path), "only embedding runs lie in buckets"
    if config.kind == "embedding" or (not config.kind and is_vectors(data)):
        _check_settings(config, (*_OF_GRAPHS, *_OF_IMAGES), "embedding")
        return scan_vectors(data, space=config.space, classes=config.classes)
    if config.space:
        raise InvalidInput("--space needs embeddings, .npy or .npz", field="space")
    photos = scan(data, classes=config.classes, kind=config.kind)
    if photos.kind != "image":
        _check_settings(config, _OF_IMAGES, photos.kind)
    return photos if config.test is None else add_test_set(photos, config.test), None


def check_backbone(name: str, kind: str, repository: Repository) -> None:
    """Raise InvalidInput if a name is the default, which takes images, and the data has others."""
    if kind != "image" and name == backbones.DEFAULT:
        added = ", ".join(added_names(repository, kind))
        more = f"; the repository has {added}" if added else ""
        raise InvalidInput(missing_backbone(kind) + more, field="backbone")


def _check_settings(config: FitConfig, names: tuple[str, ...], kind: str) -> None:
    """Raise InvalidInput for settings that need photos."""
    default = type(config)(data=config.data, model=config.model, repository=config.repository)
    for name in names:
        if getattr(config, name) != getattr(default, name):
            field = "unfreeze" if name == "finetuning" else name
            raise InvalidInput(
                f"--{field.replace('_', '-')} needs photos, and {file_name(config.data)} has "
                f"{NOUNS[kind]}s",
                field=field,
            )
