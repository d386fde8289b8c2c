"""A model in this process, without a server: ``topwork.open``. Its answers are the server's."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo, Manifest, check_may_serve
from topwork.bundle.opening import open_repository
from topwork.bundle.signing.signatures import UNSIGNED, Signing
from topwork.bundle.store import Repository
from topwork.client.images import ImageLike, check_several, content
from topwork.client.inputs import Array, Audio, Text
from topwork.client.results import ExplainResult, ImageResult
from topwork.errors import ImageError, InvalidInput
from topwork.in_order import in_order
from topwork.inputs.audio import SentAudio
from topwork.inputs.embeddings import SentEmbedding
from topwork.inputs.kinds import AnyInput, array_of, kind_of
from topwork.inputs.text import SentText
from topwork.rpc.convert.answers import to_image_result
from topwork.rpc.convert.explanations import to_explain_response
from topwork.runtime.cores import available_cores
from topwork.serving.classifier import DEFAULT_TOP_K
from topwork.serving.classify_batch import image_answers
from topwork.serving.explanation.explainer import DEFAULT_NEIGHBOURS
from topwork.serving.explanation.local import LocalExplainer
from topwork.serving.head import HeadLoader, LoadedHead
from topwork.serving.request_batch import Scores
from topwork.storage.location import to_location
from topwork.training.backbone_session import UsedBackbone, open_backbone_session

_LOG = logging.getLogger(__name__)

AHEAD = 4
"""Images in flight per thread; raising it reads more images of an iterator ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedInput:
    """Embedding of one input."""

    digest: str
    """Digest of the prepared input in hexadecimal, by which an exemplar is found."""
    embedding: NDArray[np.float32]
    """(D,)"""


class Model:
    """One revision of a model, in memory. Safe to use from several threads.

    It does not change: open it again to use a revision that was published later.
    """

    def __init__(self, repository: Repository, manifest: Manifest, *, threads: int) -> None:
        info = repository.backbone(manifest)
        self._manifest = manifest
        self._threads = threads
        self._backbone = open_backbone(repository, info)
        self._head = load_head(repository, manifest)
        self._explainer = LocalExplainer(repository, manifest, self._backbone, self._head)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} revision {self.revision}>"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._manifest.model

    @property
    def revision(self) -> int:
        """Number of the revision."""
        return self._manifest.revision

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels, sorted by code point."""
        return self._manifest.labels

    @property
    def kind(self) -> str:
        """Kind of the inputs, such as ``image``; see ``topwork.inputs.kinds``."""
        return kind_of(self._backbone.info.preprocess).name

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self._backbone.info.width

    @overload
    def predict(
        self, images: Iterator[ImageLike], *, top_k: int = DEFAULT_TOP_K
    ) -> Generator[ImageResult, None, None]: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike] | Array, *, top_k: int = DEFAULT_TOP_K
    ) -> list[ImageResult]: ...

    def predict(
        self, images: Iterable[ImageLike], *, top_k: int = DEFAULT_TOP_K
    ) -> list[ImageResult] | Generator[ImageResult, None, None]:
        """Return the result of each image, in order; an iterator of images gives a generator.

        Images are as in ``Client.classify``. An invalid image is an error in its own result. Raises
        OSError if a file cannot be read, TypeError for what is no image, InvalidInput if ``top_k``
        is not positive, or the model takes another kind of inputs.
        """
        check_several(images)
        _check_top_k(top_k)
        work = partial(self.result, top_k=top_k)
        ahead = AHEAD * self._threads
        done = in_order(work, images, threads=self._threads, ahead=ahead)
        results = (result for _, result in done)
        return results if isinstance(images, Iterator) else list(results)

    def result(self, image: ImageLike, *, top_k: int = DEFAULT_TOP_K) -> ImageResult:
        """Return the result of one image, computed in the calling thread; else as ``predict``."""
        _check_top_k(top_k)
        return self._predict(_given(image), top_k)

    def embed(self, image: ImageLike) -> EmbeddedInput:
        """Return the embedding of one image, as exemplars have it, in the calling thread.

        Raises ImageError, and what ``predict`` raises.
        """
        spec = self._backbone.info.preprocess
        prepared = array_of(_given(image), spec, model=self.name)
        return EmbeddedInput(
            digest=kind_of(spec).digest(prepared),
            embedding=self._backbone.session.run(prepared[None])[0],
        )

    def explain(
        self,
        image: ImageLike,
        *,
        label: str = "",
        neighbours: int = DEFAULT_NEIGHBOURS,
        top_k: int = DEFAULT_TOP_K,
    ) -> ExplainResult:
        """Classify an image, and explain a label: evidence by position, and nearest examples.

        As ``Client.explain``. Raises ImageError, InvalidInput, NotFound if the revision has no such
        label, OSError and TypeError as ``predict`` does.
        """
        _check_top_k(top_k)
        explanation = self._explainer.explain(
            _given(image), label=label, count=neighbours, top_k=top_k
        )
        return ExplainResult.of(to_explain_response(explanation))

    def _predict(self, image: AnyInput, top_k: int) -> ImageResult:
        try:
            prepared = array_of(image, self._backbone.info.preprocess, model=self.name)
        except ImageError as error:
            return ImageResult.of(to_image_result(error))
        embeddings = self._backbone.session.run(prepared[None])
        (answer,) = image_answers(self._manifest, Scores(*self._head.run(embeddings), 0.0), top_k)
        return ImageResult.of(to_image_result(answer))


def _given(image: ImageLike) -> AnyInput:
    """Return the input as a server would get it. Raises OSError, TypeError."""
    found = content(image)
    if isinstance(found, bytes):
        return found
    if isinstance(found, Text):
        return SentText(found.data)
    if isinstance(found, Audio):
        return SentAudio(found.data)
    return SentEmbedding(np.frombuffer(found.values, dtype=np.float32), found.space)


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise InvalidInput(f"top_k is {top_k}; it must be at least 1", field="top_k")


def open_backbone(repository: Repository, info: BackboneInfo) -> UsedBackbone:
    """Open a backbone, or its twin, and log a warning if it is off on this machine."""
    opened = open_backbone_session(repository, info)
    if opened.off is not None:
        _LOG.warning("backbone is off: %s", opened.off)
    return opened


def load_head(repository: Repository, manifest: Manifest) -> LoadedHead:
    """Load the head of a revision. Raises Corrupt."""
    return HeadLoader().load(
        repository.head(manifest),
        width=repository.backbone(manifest).width,
        labels=len(manifest.labels),
        unknown=manifest.chosen.unknown_threshold is not None,
    )


def open_model(
    repository: str | os.PathLike[str],
    model: str,
    *,
    revision: int = 0,
    threads: int | None = None,
    signing: Signing = UNSIGNED,
) -> Model:
    """Load a model of a repository into this process.

    ``revision`` 0 is the serving one. ``threads`` is the number of images that are predicted at a
    time; None: one per core. Raises NotFound, NotReady if the revision was rejected, and Corrupt if
    it is damaged or a key of ``signing`` has not signed it.
    """
    opened = open_repository(to_location(repository), signing)
    manifest = opened.manifest(model, revision or opened.serving(model))
    check_may_serve(manifest)
    return Model(opened, manifest, threads=threads or available_cores())
