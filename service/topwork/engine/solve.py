"""From stored exemplars to a published revision: the last step of fit and of AddClass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from topwork.bundle.exemplars import Exemplars
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.manifest import ChosenHead, Manifest, PrecisionGate
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.engine.backend import software_versions
from topwork.errors import NotFound
from topwork.learning.audit import audit_exemplars
from topwork.learning.learn import Learned, learn
from topwork.report.content import Content, Making, Parent
from topwork.report.page import render


def solve(
    repository: Repository,
    *,
    model: str,
    backbone: str,
    shards: Sequence[str],
    seed: int,
    recipe: Recipe,
    making: Making,
    parent: int = 0,
    operation: str = "",
    threads: int = 1,
) -> Manifest:
    """Learn a head from all exemplars of ``shards``, audit them, and publish: see ``publish``.

    Raises Corrupt, and NotReady if the recipe's head cannot be learnt from as many.
    """
    exemplars = repository.exemplars(shards)
    learned = learn(exemplars, seed=seed, recipe=recipe, threads=threads)
    seen = audit_exemplars(exemplars, learned.judged, seed=seed)
    return publish(
        repository,
        exemplars,
        learned,
        model=model,
        backbone=backbone,
        shards=shards,
        seed=seed,
        recipe=recipe,
        making=replace(making, findings=(*making.findings, *seen)),
        parent=parent,
        operation=operation,
    )


def publish(
    repository: Repository,
    exemplars: Exemplars,
    learned: Learned,
    *,
    model: str,
    backbone: str,
    shards: Sequence[str],
    seed: int,
    recipe: Recipe,
    making: Making,
    parent: int = 0,
    operation: str = "",
    precision_gate: PrecisionGate | None = None,
) -> Manifest:
    """Publish what was learnt from the exemplars of ``shards`` as the model's next revision.

    ``backbone`` and ``shards`` are digests of what is stored already; ``parent``, ``operation`` and
    ``precision_gate`` are recorded. The report compares with the serving revision. The revision
    does not serve yet.
    """
    head = learned.head
    draft = Manifest(
        model=model,
        revision=0,  # publish knows it, and the digests of the files
        parent=parent,
        labels=exemplars.labels,
        backbone=backbone,
        backbone_info=repository.backbone_info_digest(backbone),
        head="",
        metrics="",
        report="",
        exemplars=tuple(shards),
        data_digest=exemplars.data_digest(),
        images=len(exemplars),
        seed=seed,
        recipe=recipe,
        chosen=ChosenHead(
            kind=learned.kind,
            normalisation=head.normaliser.kind,
            strength=learned.strength,
            temperature=head.temperature,
            unknown_threshold=head.unknown.threshold if head.unknown else None,
        ),
        precision_gate=precision_gate,
        operation=operation,
        created=datetime.now(UTC),
        versions=software_versions(),
    )
    content = Content(
        manifest=draft,
        metrics=learned.metrics,
        backbone=repository.backbone(draft),
        exemplars=exemplars,
        judged=learned.judged,
        parent=_serving(repository, model),
        making=making,
    )
    return repository.publish(
        draft,
        head=to_onnx(head),
        metrics=learned.metrics,
        report=lambda manifest: render(replace(content, manifest=manifest)).encode(),
    )


def _serving(repository: Repository, model: str) -> Parent | None:
    try:
        manifest = repository.manifest(model, repository.serving(model))
    except NotFound:
        return None
    return Parent(manifest=manifest, metrics=repository.metrics(manifest))
