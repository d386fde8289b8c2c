"""Probe of a backbone on a sample of photos: accuracy of a head, kNN accuracy, and cost."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.errors import InvalidInput, TopworkError
from topwork.inputs.image_source import ImageSource
from topwork.inputs.kinds import kind_of
from topwork.inputs.spec import InputSpec
from topwork.learning.learn import learn
from topwork.limits import DEFAULT_LIMITS
from topwork.report.content import RankedBackbone
from topwork.training.backbone_session import EmbeddingSession, UsedBackbone
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.plans import AUTO_POOL, PARTS
from topwork_trainer.backbones.prepare import prepare_backbone
from topwork_trainer.fit.attempts import Attempts
from topwork_trainer.kinds import sizes_json

NEIGHBOURS = 5
TIMED_IMAGES = 16
TIMED_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Result of probing a backbone; if that failed, the row has the error."""

    choice: BackboneChoice
    row: RankedBackbone
    right: Mapping[str, bool] = field(default_factory=dict)
    """True for each photo, by name, whose out-of-fold prediction is right."""


class Prober:
    """Probes backbones on the same photos in the same folds, so that results are comparable."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._reference: Exemplars | None = None

    def probe(self, choice: BackboneChoice) -> ProbeResult:
        """Measure the accuracy and cost of a backbone; a failure becomes the error in the row."""
        try:
            return self._judge(choice, *self._measure(choice))
        except TopworkError as error:
            return ProbeResult(choice=choice, row=_failed_row(choice, str(error)))

    def probe_pools(self, choice: BackboneChoice) -> list[ProbeResult]:
        """Measure all embeddings of a vision transformer, whose name has no pool, in one pass.

        With two views each image's parts are averaged before CLS and mean are scaled, in the
        exported graph of ``cls-mean`` after that.
        """
        try:
            every = replace(choice, name=f"{choice.name}:{PARTS}")
            row, exemplars = self._measure(every)
            pools = _pools(exemplars.embeddings)
            return [
                self._judge(
                    replace(choice, name=choice.name + pool),
                    replace(row, width=embeddings.shape[1]),
                    replace(exemplars, embedding_rows=embeddings),
                )
                for pool, embeddings in pools.items()
            ]
        except TopworkError as error:
            choice = replace(choice, name=choice.name + AUTO_POOL)
            return [ProbeResult(choice=choice, row=_failed_row(choice, str(error)))]

    def _measure(self, choice: BackboneChoice) -> tuple[RankedBackbone, Exemplars]:
        """Return a row without accuracy, and the photos' embeddings."""
        attempts = self._attempts
        attempts.on_progress(f"try {choice}", 0, len(attempts.sources))
        info = prepare_backbone(attempts.repository, choice, attempts.exports)
        model = attempts.repository.backbone_model(info.digest)
        backbone = attempts.open(info)
        exemplars = self._with_reference_folds(self._embed(choice, backbone))
        row = replace(
            _failed_row(choice, ""),
            image_size=sizes_json(info.preprocess)["image_size"] or 0,
            milliseconds=milliseconds(
                backbone.session, info.preprocess, self._timed_images(exemplars)
            ),
            megabytes=len(model) / 1e6,
            width=info.width,
            licence=info.licence,
        )
        return row, exemplars

    def _judge(
        self, choice: BackboneChoice, row: RankedBackbone, exemplars: Exemplars
    ) -> ProbeResult:
        """Return the row with the accuracy of the head that a fit would learn."""
        attempts = self._attempts
        folds = exemplars.folds(attempts.seed)
        learned = learn(
            exemplars, seed=attempts.seed, recipe=attempts.recipe, threads=attempts.cores
        )
        predicted = learned.judged.probabilities.argmax(axis=1)
        right = predicted == exemplars.targets[learned.judged.rows]
        names = [exemplars.names[row] for row in learned.judged.rows]
        return ProbeResult(
            choice=choice,
            row=replace(
                row,
                name=choice.name,
                accuracy=learned.metrics.accuracy,
                accuracy_low=learned.metrics.accuracy_low,
                accuracy_high=learned.metrics.accuracy_high,
                knn_accuracy=knn_accuracy(exemplars.embeddings, exemplars.targets, folds),
            ),
            right=dict(zip(names, right.tolist(), strict=True)),
        )

    def _embed(self, choice: BackboneChoice, backbone: UsedBackbone) -> Exemplars:
        attempts = self._attempts
        exemplars, skipped = attempts.embed(backbone, stage=f"try {choice}")
        if exemplars is None or len(exemplars.labels) < 2:
            raise InvalidInput(
                f"{len(attempts.sources) - len(skipped)} of {len(attempts.sources)} photos are "
                "usable, and they have fewer than two classes",
                field="data",
            )
        return exemplars

    def _with_reference_folds(self, exemplars: Exemplars) -> Exemplars:
        """Return the exemplars with the digests and fingerprints of the first backbone's exemplars.

        Digests and fingerprints depend on the pixels, and so on the image size; the folds depend on
        them. Photos that the first backbone did not use are dropped.
        """
        if self._reference is None:
            self._reference = exemplars
            return exemplars
        reference = self._reference
        row_of = {name: row for row, name in enumerate(exemplars.names)}
        shared = [row for row, name in enumerate(reference.names) if name in row_of]
        return replace(
            exemplars,
            embedding_rows=exemplars.embeddings[[row_of[reference.names[row]] for row in shared]],
            digests=reference.digests[shared],
            fingerprints=reference.fingerprints[shared],
            targets=reference.targets[shared],
            labels=reference.labels,
            seen=reference.seen[shared],
            names=tuple(reference.names[row] for row in shared),
            thumbnails=tuple(reference.thumbnails[row] for row in shared),
            groups=reference.groups[shared],
        )

    def _timed_images(self, exemplars: Exemplars) -> list[bytes]:
        usable = set(exemplars.names)
        sources = [source for source in self._attempts.sources if source.name in usable]
        return [source.read() for source in sources[:: -(-len(sources) // TIMED_IMAGES)]]


def sample(sources: Sequence[ImageSource], size: int, *, seed: int) -> list[ImageSource]:
    """Return about ``size`` photos in their order, spread as evenly over the classes as possible.

    Takes the photos of a class whose names, hashed with ``seed``, come first: a new photo in a
    folder changes the sample by at most one photo. Each class has at least as many as a fit needs.
    """
    by_label: dict[str, list[ImageSource]] = defaultdict(list)
    for source in sources:
        by_label[source.label].append(source)
    left, chosen = size, set[str]()
    # Small classes first, so that the others share the rest.
    for done, members in enumerate(sorted(by_label.values(), key=len)):
        share = max(left // (len(by_label) - done), DEFAULT_LIMITS.min_images_per_label)
        first = sorted(members, key=lambda source: _hash(source.name, seed))[:share]
        chosen.update(source.name for source in first)
        left -= len(first)
    return [source for source in sources if source.name in chosen]


def knn_accuracy(
    embeddings: NDArray[np.float32], targets: NDArray[np.int64], folds: NDArray[np.int64]
) -> float:
    """Return the accuracy of a vote of the NEIGHBOURS nearest images (by cosine) of other folds.

    ``embeddings`` is (N, D), the others (N,). The closeness of the neighbours breaks ties.
    """
    unit = _unit(embeddings)
    right = 0
    for start in range(0, len(unit), 1024):  # bounds the (rows, N) matrix
        block = slice(start, start + 1024)
        cosines = unit[block] @ unit.T
        cosines[folds[block, None] == folds] = -np.inf
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
        near = np.take_along_axis(cosines, nearest, axis=1)
        votes = np.zeros((len(nearest), int(targets.max()) + 1))
        rows = np.arange(len(nearest))[:, None]
        np.add.at(votes, (rows, targets[nearest]), np.where(np.isfinite(near), 1 + near / 100, 0))
        right += int(np.sum(votes.argmax(axis=1) == targets[block]))
    return right / len(unit)


def milliseconds(session: EmbeddingSession, spec: InputSpec, contents: Sequence[bytes]) -> float:
    """Return the mean CPU time to prepare and embed an input on one core.

    Takes the fastest of TIMED_RUNS runs per input and the CPU time of this thread, so that other
    processes hardly disturb the measurement.
    """
    kind, total = kind_of(spec), 0.0
    for content in contents:
        runs: list[float] = []
        for _ in range(TIMED_RUNS):
            start = time.thread_time()
            session.run(kind.prepare(content, spec, limits=DEFAULT_LIMITS)[None])
            runs.append(time.thread_time() - start)
        total += min(runs)
    return 1000 * total / len(contents)


def _pools(parts: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return the different embeddings, by the suffix of the name, in columns of ``PARTS``."""
    own, cls, mean = np.split(parts, 3, axis=1)
    pools = {"": own, ":mean": mean}
    if cls.any():
        pools |= {":cls": cls, ":cls-mean": np.concatenate([_unit(cls), _unit(mean)], axis=1)}
    return {
        pool: each
        for pool, each in pools.items()
        if not pool or each.shape != own.shape or not np.allclose(each, own, 1e-4, 1e-5)
    }


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows / lengths)


def _failed_row(choice: BackboneChoice, error: str) -> RankedBackbone:
    return RankedBackbone(
        name=choice.name,
        image_size=choice.image_size or 0,
        views=choice.views,
        accuracy=0.0,
        accuracy_low=0.0,
        accuracy_high=0.0,
        knn_accuracy=0.0,
        milliseconds=0.0,
        megabytes=0.0,
        width=0,
        licence="",
        error=error,
    )


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
