"""Second phase of a fit: fine-tunes the backbone and measures the gain. Imports torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.features import make
from topwork.errors import NotReady
from topwork.learning.families import FAMILIES
from topwork.learning.task import Task
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice
from topwork_trainer.backbones.prepare import store
from topwork_trainer.finetuning.finetune import finetune
from topwork_trainer.finetuning.settings import FinetuneConfig, LinearHead
from topwork_trainer.fit.attempts import Attempt, Attempts, compare
from topwork_trainer.fit.paired import Difference

HELD_OUT, VALIDATION = 0, 1
"""Folds: the first tests the result, the second stops training early; neither is trained on."""

HEAD_STRENGTH = 30.0
"""Raising it regularises the initial head less; cross-validation often chooses 30."""


def finetune_backbone(
    attempts: Attempts,
    frozen: Attempt,
    choice: BackboneChoice,
    *,
    unfreeze: str,
    epochs: int | None,
    mirror: bool,
    checkpoint: Path,
) -> tuple[Attempt, Difference]:
    """Fine-tune the backbone of ``frozen``; return the attempt with it, and its gain.

    Both are judged on the held-out fold, on which neither the heads nor the tuned backbone were
    trained. Stores the new backbone. Raises Diverged, ExportError, and NotReady if there are too
    few photos to hold some out.
    """
    exemplars = frozen.exemplars
    folds = exemplars.folds(attempts.seed)
    by_name = {source.name: source for source in attempts.sources}
    held_out, validation, train = (
        [by_name[exemplars.names[row]] for row in np.flatnonzero(rows)]
        for rows in (folds == HELD_OUT, folds == VALIDATION, folds > VALIDATION)
    )
    if not (held_out and validation and train):
        raise NotReady(
            f"{len(exemplars)} photos are too few to hold some out of fine-tuning",
            reason="TOO_FEW_IMAGES",
        )
    settings = FinetuneConfig(unfreeze=unfreeze, mirror=mirror, seed=attempts.seed)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    tuned = finetune(
        backbones.load(choice),
        train,
        validation,
        _head(exemplars, folds > VALIDATION),
        exemplars.labels,
        settings,
        checkpoint=checkpoint,
        on_progress=lambda done, total: attempts.on_progress("fine-tune", done, total),
    )
    info = store(attempts.repository, tuned.backbone)
    seen = frozenset(source.name for source in (*train, *validation))
    attempt = attempts.attempt(info, seen=seen, stage="embed again")
    return attempt, compare(attempt, frozen)


def _head(exemplars: Exemplars, train: NDArray[np.bool_]) -> LinearHead:
    """Return a logistic regression on the frozen features of the training rows."""
    features = make("sqrt_l2", exemplars.embeddings)(exemplars.embeddings)
    task = Task(features=features, targets=exemplars.targets, classes=len(exemplars.labels))
    ((scorer,),) = FAMILIES["logistic"].solve(task, train[None], [HEAD_STRENGTH], final=False)
    return LinearHead(weights=scorer.weights, bias=scorer.bias)
