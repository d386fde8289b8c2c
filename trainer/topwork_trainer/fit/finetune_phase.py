"""Second phase of a fit: fine-tunes the backbone, judged by five folds in turn. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import FOLDS, Exemplars
from topwork.bundle.features import make
from topwork.bundle.recipe import HeadKind
from topwork.errors import NotReady
from topwork.learning.cross_validation import CrossValidation, Trial
from topwork.learning.families import FAMILIES
from topwork.learning.parallel import SINGLE_THREAD
from topwork.learning.task import Task
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.prepare import store
from topwork_trainer.finetuning.finetune import FoldTuner, Tuned, fold_tuner
from topwork_trainer.finetuning.settings import FinetuneConfig, LinearHead
from topwork_trainer.fit.attempts import Attempt, Attempts
from topwork_trainer.fit.paired import Difference, paired

PUBLISHED = 0
"""Fold of the published backbone, which was fine-tuned on all photos but those of this fold.

They are left to choose and evaluate the head, now and after each change of the classes.
"""

HOPELESS_AFTER = 2
"""Raising it judges more folds before fine-tuning ends because it gains nothing."""

HEAD_STRENGTH = 30.0
"""Raising it regularises the initial head less; cross-validation often chooses 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Comparison of fine-tuned with frozen backbones, photo by photo."""

    difference: Difference
    folds: int
    """Number of folds that were judged, all if fine-tuning was not hopeless."""
    accuracy: tuple[float, float]
    """Fine-tuned, frozen."""
    log_loss: tuple[float, float]
    """Fine-tuned, frozen; each with the temperature that fits best."""

    @property
    def proven(self) -> bool:
        """True if the gain in accuracy is significant, in all folds."""
        return self.folds == FOLDS and self.difference.low > 0

    @property
    def hopeless(self) -> bool:
        """True if the first folds show no gain."""
        return self.folds >= HOPELESS_AFTER and self.difference.gain <= 0

    def __str__(self) -> str:
        """Return text such as ``gains +1.25 points (0.40 to 2.10) on 400 images ...``."""
        (tuned, frozen), (loss, frozen_loss) = self.accuracy, self.log_loss
        return (
            f"gains {self.difference}, each judged by a backbone that was tuned without its fold: "
            f"accuracy {tuned:.3f} against {frozen:.3f}, log loss {loss:.3f} against "
            f"{frozen_loss:.3f} in {self.folds} folds"
        )


def finetune_backbone(
    attempts: Attempts,
    frozen: Attempt,
    choice: BackboneChoice,
    config: FinetuneConfig,
    *,
    always: bool,
    checkpoints: Path,
) -> tuple[Attempt | None, Verdict]:
    """Fine-tune the backbone of ``frozen`` without each fold in turn, and judge it on that fold.

    Returns the attempt with a fine-tuned backbone, which is stored, or None if the gain is not
    proven, unless ``always``. It is the backbone that was tuned without fold ``PUBLISHED``: the one
    tuning whose photos can still evaluate heads. Raises Diverged, ExportError, InvalidInput, and
    NotReady if there are too few photos or the disk is full.
    """
    exemplars, by_name = frozen.exemplars, {source.name: source for source in attempts.sources}
    folds = exemplars.folds(attempts.seed)
    _check(exemplars, folds)
    sources = [by_name[name] for name in exemplars.names]
    cached = 0

    def count_cached() -> None:
        nonlocal cached
        cached += 1
        attempts.on_progress("frozen stages", cached, len(sources))

    with fold_tuner(
        backbones.load(choice),
        exemplars,
        sources,
        folds,
        [_head(exemplars, folds != fold) for fold in range(FOLDS)],
        config,
        seed=attempts.seed,
        checkpoints=checkpoints,
        on_image=count_cached,
    ) as tuner:
        first, verdict = _judge_folds(attempts, frozen, tuner, always=always)
        if not (verdict.proven or always):
            return None, verdict
        info = store(attempts.repository, tuner.tuned_backbone(first))
    trained = np.flatnonzero(folds != PUBLISHED)
    seen = frozenset(exemplars.names[row] for row in trained)
    return attempts.attempt(info, seen=seen, stage="embed again"), verdict


def _judge_folds(
    attempts: Attempts, frozen: Attempt, tuner: FoldTuner, *, always: bool
) -> tuple[Tuned, Verdict]:
    """Return the result without fold ``PUBLISHED``, and the verdict on as many folds as it took."""

    def on_photos(done: int) -> None:
        attempts.on_progress("fine-tune", done, tuner.photos)

    scores: list[list[NDArray[np.float32]]] = []
    published: Tuned | None = None
    with closing(tuner.results(on_photos)) as results:
        for tuned in results:
            published = published or tuned
            scores.append(_scores(frozen, tuned, tuner.folds))
            verdict = _verdict(frozen, tuner.folds, scores)
            if verdict.hopeless and not always:
                break
    assert published is not None, "there are FOLDS results"
    return published, verdict


def _scores(frozen: Attempt, tuned: Tuned, folds: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Return the scores of a fold's photos by each candidate, trained on the other folds.

    The candidates are the heads and strengths that were tried on the frozen backbone, in order, on
    the normalisation that was chosen for it.
    """
    validation = _validation(
        frozen.exemplars, np.where(folds == tuned.fold, folds, -1), tuned.embeddings
    )
    task = validation.task(make(frozen.learned.head.normaliser.kind, tuned.embeddings))
    scores = []
    for kind, tried in groupby(frozen.learned.metrics.candidates, key=lambda tried: tried.head):
        strengths = [candidate.strength for candidate in tried]
        scores += validation.scores(task, cast("HeadKind", kind), strengths, SINGLE_THREAD)
    return scores


def _verdict(
    frozen: Attempt, folds: NDArray[np.int64], scores: Sequence[Sequence[NDArray[np.float32]]]
) -> Verdict:
    """Return the verdict on the first folds, given the scores of each by each candidate.

    All folds have the same head, chosen by the rule that chose the frozen backbone's.
    """
    exemplars, learned = frozen.exemplars, frozen.learned
    judged = np.where(folds < len(scores), folds, -1)
    validation = _validation(exemplars, judged, exemplars.embeddings)
    rows = validation.rows
    groups: list[list[Trial]] = []
    for candidate, own in zip(learned.metrics.candidates, zip(*scores, strict=True), strict=True):
        every = np.empty((len(rows), validation.classes), dtype=np.float32)
        for fold, part in enumerate(own):
            every[folds[rows] == fold] = part
        normaliser = learned.head.normaliser
        kind = cast("HeadKind", candidate.head)
        groups.append([validation.trial(kind, normaliser, candidate.strength, every)])
    best = validation.best(groups)
    before = learned.judged.probabilities[np.isin(learned.judged.rows, rows)]
    right, right_before = (
        np.asarray(every.argmax(axis=1) == validation.targets) for every in (best.scores, before)
    )
    losses = -np.log(before[np.arange(len(rows)), validation.targets])
    frozen_loss = float(validation.weights @ losses / validation.weights.sum())
    return Verdict(
        difference=paired(right, right_before),
        folds=len(scores),
        accuracy=(float(right.mean()), float(right_before.mean())),
        log_loss=(validation.loss(best), frozen_loss),
    )


def _validation(
    exemplars: Exemplars, folds: NDArray[np.int64], embeddings: NDArray[np.float32]
) -> CrossValidation:
    return CrossValidation(
        embeddings=embeddings,
        every_target=exemplars.targets,
        classes=len(exemplars.labels),
        folds=folds,
    )


def _check(exemplars: Exemplars, folds: NDArray[np.int64]) -> None:
    """Raise NotReady unless every fold has photos and is not all that a class has."""
    counts = np.zeros((FOLDS, len(exemplars.labels)), dtype=np.int64)
    np.add.at(counts, (folds, exemplars.targets), 1)
    if not counts.any(axis=1).all() or (counts == exemplars.counts()).any():
        raise NotReady(
            f"{len(exemplars)} photos are too few to hold some out of fine-tuning",
            reason="TOO_FEW_IMAGES",
        )


def _head(exemplars: Exemplars, train: NDArray[np.bool_]) -> LinearHead:
    """Return a logistic regression on the frozen features of the training rows."""
    features = make("sqrt_l2", exemplars.embeddings)(exemplars.embeddings)
    task = Task(features=features, targets=exemplars.targets, classes=len(exemplars.labels))
    ((scorer,),) = FAMILIES["logistic"].solve(task, train[None], [HEAD_STRENGTH], final=False)
    return LinearHead(weights=scorer.weights, bias=scorer.bias)
