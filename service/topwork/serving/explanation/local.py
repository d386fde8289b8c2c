"""Explanations without a server, in the calling thread. They are the server's."""

from __future__ import annotations

import threading

import numpy as np

from topwork.arrays import Float32Array
from topwork.bundle.examples import ExampleIndex
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.inputs.image import WHOLE, prepare
from topwork.inputs.kinds import IMAGE, AnyInput, array_of, check_kind
from topwork.runtime.backend import open_session
from topwork.serving.classify_batch import image_answers
from topwork.serving.examples import Examples
from topwork.serving.explanation.explainer import (
    Explanation,
    check_label,
    check_neighbours,
    explain,
    normaliser_of,
)
from topwork.serving.explanation.map_graph import (
    MapLayout,
    NoMap,
    check_positions,
    unloadable,
    with_maps,
)
from topwork.serving.explanation.neighbours import (
    Block,
    Neighbour,
    most_similar,
    neighbours,
    unit,
    unit_blocks,
)
from topwork.serving.head import LoadedHead
from topwork.serving.request_batch import Scores
from topwork.training.backbone_session import EmbeddingSession, UsedBackbone


class LocalExplainer:
    """Explainer of one revision. Safe to use from several threads.

    The first call opens a second session of the backbone, and the first one with neighbours reads
    all exemplars, which stay in memory.
    """

    def __init__(
        self, repository: Repository, manifest: Manifest, backbone: UsedBackbone, head: LoadedHead
    ) -> None:
        self._repository = repository
        self._manifest = manifest
        self._backbone = backbone
        self._head = head
        self._examples = Examples(repository)
        self._lock = threading.Lock()
        self._mapped: tuple[EmbeddingSession, MapLayout | NoMap] | None = None
        self._near: tuple[ExampleIndex, list[Block]] | None = None

    def explain(self, content: AnyInput, *, label: str, count: int, top_k: int) -> Explanation:
        """Explain the classification of an image. Raises as Explainer.explain does."""
        check_neighbours(count)
        check_label(self._manifest, label)
        info = self._backbone.info
        model, region = self._manifest.model, WHOLE
        if isinstance(content, bytes):
            check_kind(IMAGE, info.preprocess, model=model, field="image")
            prepared = prepare(content, info.image_spec)
            array, region = prepared.pixels, prepared.region
        else:
            array = array_of(content, info.preprocess, model=model)
        with self._lock:
            if self._mapped is None:
                self._mapped = self._open()
        session, layout = self._mapped
        row = session.run(array[None])[0]
        embedding = np.ascontiguousarray(row[: info.width])
        scores = Scores(*self._head.run(embedding[None]), 0.0)
        (answer,) = image_answers(self._manifest, scores, top_k)
        return Explanation(
            manifest=self._manifest,
            answer=answer,
            explained=explain(self._manifest, self._head, row, layout, label, info.width),
            region=region,
            neighbours=tuple(self._nearest(embedding, count)) if count else (),
            timings=None,
        )

    def _open(self) -> tuple[EmbeddingSession, MapLayout | NoMap]:
        try:
            check_positions(self._backbone.info)
            model, layout = with_maps(self._repository.backbone_model(self._backbone.info.digest))
            return open_session(model, output="embedding"), layout
        except NoMap as reason:
            return self._backbone.session, reason
        except Corrupt as error:
            return self._backbone.session, unloadable(error)

    def _nearest(self, embedding: Float32Array, count: int) -> list[Neighbour]:
        normaliser = normaliser_of(self._head, len(embedding))
        with self._lock:
            if self._near is None:
                index = self._repository.examples(self._manifest)
                shards = self._examples.embeddings(self._manifest)
                self._near = index, list(unit_blocks(normaliser, shards))
        index, blocks = self._near
        nearest = most_similar(index, blocks, unit(normaliser(embedding[None]))[0], count)
        details = self._examples.read_details(self._manifest, index, nearest.rows)
        return neighbours(index, nearest, details)
