"""Attempts: embeds the photos with a backbone, learns a head and judges it by cross-validation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.inputs.image_source import ImageSource
from topwork.inputs.kinds import kind_of
from topwork.inputs.thumbnail import SIDE
from topwork.learning.audit import suspects
from topwork.learning.learn import Learned, learn
from topwork.limits import DEFAULT_LIMITS
from topwork.training.backbone_session import UsedBackbone, open_backbone_session
from topwork.training.embed import Skipped, embed
from topwork_trainer.backbones.exports import Exports
from topwork_trainer.cache import EmbeddingCache
from topwork_trainer.data import check_counts
from topwork_trainer.fit.paired import Difference, paired
from topwork_trainer.kinds import noun_of

_LOG = logging.getLogger(__name__)

SUSPECTED = "SUSPECTED_LABEL"
"""Reason of photos that were left out because their label is suspected."""

OnStageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, units done and total units (0: a single step)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Result of one backbone: exemplars, head and metrics."""

    backbone: BackboneInfo
    exemplars: Exemplars
    learned: Learned
    skipped: Sequence[Skipped]

    def right(self) -> NDArray[np.bool_]:
        """Return True for each judged exemplar (J,) whose predicted label is right."""
        judged = self.learned.judged
        predicted = judged.probabilities.argmax(axis=1)
        return np.asarray(predicted == self.exemplars.targets[judged.rows])

    def images(self) -> Sequence[bytes]:
        """Return the key of each judged exemplar."""
        every = keys(self.exemplars)
        return [every[row] for row in self.learned.judged.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Photos and settings that all attempts share."""

    repository: Repository
    sources: Sequence[ImageSource]
    recipe: Recipe
    seed: int
    cores: int
    cache: EmbeddingCache | None
    exports: Exports | None = None
    preview_pixels: int = SIDE
    """Side of the thumbnails."""
    on_progress: OnStageProgress
    dropped: Mapping[bytes, str] = field(default_factory=dict)
    """Reasons to leave photos out, by the photo's key (see ``keys``)."""

    def attempt(
        self, info: BackboneInfo, *, seen: frozenset[str] = frozenset(), stage: str = "embed"
    ) -> Attempt:
        """Embed all photos with a stored backbone and learn a head.

        ``seen`` has the names of the photos on which the backbone was fine-tuned. Raises
        InvalidInput if a class has too few usable photos.
        """
        exemplars, skipped = self.embed(self.open(info), stage=stage)
        return self.attempt_on(info, exemplars, skipped, seen)

    def without_suspects(self, attempt: Attempt) -> tuple[Attempts, Attempt]:
        """Drop the photos with a suspected label; return the attempts and the attempt without them.

        Raises InvalidInput if a class has too few others.
        """
        judged, exemplars = attempt.learned.judged, attempt.exemplars
        images, targets = attempt.images(), exemplars.targets[judged.rows]
        dropped = {
            images[row]: f"the label is suspected: the photo looks like {exemplars.labels[other]!r}"
            for row, other in suspects(targets, judged.probabilities)
        }
        attempts = replace(self, dropped=dropped)
        names = zip(exemplars.names, exemplars.seen, strict=True)
        seen = frozenset(name for name, was_seen in names if was_seen)
        return attempts, attempts.attempt_on(attempt.backbone, exemplars, attempt.skipped, seen)

    def attempt_on(
        self,
        info: BackboneInfo,
        exemplars: Exemplars | None,
        skipped: Sequence[Skipped],
        seen: frozenset[str],
    ) -> Attempt:
        """Learn a head from embedded photos, except those that are ``dropped``. See ``attempt``."""
        labels = sorted({source.label for source in self.sources})
        counts = Counter(dict.fromkeys(labels, 0))
        if exemplars is not None:
            reasons = [self.dropped.get(key) for key in keys(exemplars)]
            skipped = [
                *skipped,
                *(
                    Skipped(
                        name=name, label=exemplars.labels[target], reason=SUSPECTED, message=why
                    )
                    for name, target, why in zip(
                        exemplars.names, exemplars.targets, reasons, strict=True
                    )
                    if why
                ),
            ]
            if any(reasons):  # otherwise a copy of all embeddings
                exemplars = exemplars.where(np.array([not why for why in reasons]))
            counts.update(dict(zip(exemplars.labels, exemplars.counts().tolist(), strict=True)))
        kind = f"usable {noun_of(kind_of(info.preprocess).name)}s"
        check_counts(counts, labels, kind=kind, limits=DEFAULT_LIMITS)
        assert exemplars is not None, "check_counts refused an empty set"
        exemplars = replace(exemplars, seen=np.array([name in seen for name in exemplars.names]))
        self.on_progress("solve", 0, 0)
        learned = learn(exemplars, seed=self.seed, recipe=self.recipe, threads=self.cores)
        return Attempt(backbone=info, exemplars=exemplars, learned=learned, skipped=skipped)

    def open(self, info: BackboneInfo) -> UsedBackbone:
        """Load a stored backbone, or its fp32 twin if it is off on this machine."""
        opened = open_backbone_session(self.repository, info)
        if opened.off is not None:
            _LOG.warning("backbone is off: %s", opened.off)
        return opened

    def embed(
        self, backbone: UsedBackbone, *, stage: str
    ) -> tuple[Exemplars | None, list[Skipped]]:
        """Return the exemplars of all usable photos (None if no photo is usable) and the others."""
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            self.on_progress(stage, done, len(self.sources))

        return embed(
            self.sources,
            backbone.session,
            backbone.info.preprocess,
            cores=self.cores,
            preview_pixels=self.preview_pixels,
            cache=self.cache.for_backbone(backbone.info, self.preview_pixels)
            if self.cache
            else None,
            on_image=count,
        )


def keys(exemplars: Exemplars) -> list[bytes]:
    """Return a key of image digest and label for each exemplar."""
    return [
        digest.tobytes() + exemplars.labels[target].encode()
        for digest, target in zip(exemplars.digests, exemplars.targets, strict=True)
    ]


def compare(new: Attempt, old: Attempt) -> Difference:
    """Return the gain in accuracy of ``new`` on the images that both judged."""
    before = dict(zip(old.images(), old.right(), strict=True))
    pairs = [
        (right, before[image])
        for image, right in zip(new.images(), new.right(), strict=True)
        if image in before
    ]
    both = np.array(pairs, dtype=bool).reshape(-1, 2)
    return paired(both[:, 0], both[:, 1])
