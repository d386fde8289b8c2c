"""From stored exemplars to a published revision: the last step of fit and of AddClass."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from topwork.bundle import head as heads
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.engine.backend import software_versions
from topwork.learning.learn import learn


def solve(
    repository: Repository,
    *,
    model: str,
    backbone: str,
    shards: Sequence[str],
    seed: int,
    parent: int = 0,
    operation: str = "",
) -> Manifest:
    """Solve the head on all exemplars of ``shards`` and publish it as the model's next revision.

    ``backbone`` and ``shards`` are digests of what is stored already; ``parent`` and ``operation``
    are recorded. The revision does not serve yet. Raises Corrupt.
    """
    exemplars = repository.exemplars(shards)
    learned = learn(exemplars, seed=seed)
    return repository.publish(
        Manifest(
            model=model,
            revision=0,  # publish knows it, and the digests of head and metrics
            parent=parent,
            labels=exemplars.labels,
            backbone=backbone,
            backbone_info=repository.backbone_info_digest(backbone),
            head="",
            metrics="",
            exemplars=tuple(shards),
            data_digest=exemplars.data_digest(),
            images=len(exemplars),
            seed=seed,
            strength=learned.head.strength,
            temperature=learned.head.temperature,
            operation=operation,
            created=datetime.now(UTC),
            versions=software_versions(),
        ),
        head=heads.to_onnx(learned.head),
        metrics=learned.metrics,
    )
