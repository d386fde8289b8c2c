"""Embeddings in a small space: points around a centre for each label."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from support import tiny
from topwork.arrays import Float32Array
from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import Manifest
from topwork.bundle.spaces import put_space
from topwork.bundle.store import Repository
from topwork.inputs.embeddings import EmbeddingSpec, to_content
from topwork.inputs.image_source import ImageSource
from topwork.learning.learn import learn
from topwork.report.content import Making
from topwork.training.backbone_session import Computed
from topwork.training.embed import embed
from topwork.training.publish import publish as publish_learned

SPEC = EmbeddingSpec(space="points-v1", width=12)


def rows(label: str, count: int, *, first: int = 0) -> Float32Array:
    """Return embeddings (count, 12) of a label: those numbered ``first`` and later."""
    centre = np.random.default_rng(zlib.crc32(label.encode())).normal(size=SPEC.width)
    made = [
        centre
        + 0.3 * np.random.default_rng([zlib.crc32(label.encode()), n]).normal(size=SPEC.width)
        for n in range(first, first + count)
    ]
    return np.stack(made).astype(np.float32)


def exemplars(images: Mapping[str, Sequence[Float32Array]]) -> Exemplars:
    """Return the exemplars of embeddings by label."""
    sources = [
        ImageSource(name=f"{label}-{number}", label=label, read=lambda row=row: to_content(row))  # type: ignore[misc]  # mypy cannot infer a lambda's default
        for label, own in images.items()
        for number, row in enumerate(own)
    ]
    made, skipped = embed(sources, Computed(), SPEC, cores=2)
    assert made is not None
    assert not skipped
    return made


def publish(repository: Repository, model: str, made: Exemplars) -> Manifest:
    """Publish a revision fitted on ``made``, and let it serve."""
    info = put_space(repository, SPEC)
    manifest = publish_learned(
        repository,
        made,
        learn(made, seed=0, recipe=tiny.LOGISTIC),
        model=model,
        backbone=info.digest,
        shards=repository.put_exemplars(made),
        seed=0,
        recipe=tiny.LOGISTIC,
        making=Making(command="tests"),
    )
    repository.set_serving(model, manifest.revision, why="fit")
    return manifest


@tiny.copied
def repository(root: Path, *, labels: tuple[str, ...] = ("a", "b", "c")) -> Repository:
    """Return a new repository with a model ``points`` fitted on 15 embeddings of each label."""
    made = Repository(root)
    publish(made, "points", exemplars({label: [*rows(label, 15)] for label in labels}))
    return made
