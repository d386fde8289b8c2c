"""Publication of a revision: the last step of a fit and of a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from topwork.bundle.comparison import Comparison, Rejection
from topwork.bundle.exemplars import Exemplars, ShardRows
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.manifest import (
    GROUPS_SCHEMA,
    SCHEMA,
    ChosenHead,
    Manifest,
    PrecisionGate,
    ShardRef,
)
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import NotFound
from topwork.inputs.thumbnail import SIDE
from topwork.learning.learn import Learned
from topwork.report.content import Content, Making, Parent
from topwork.report.embedding_map import locate
from topwork.report.page import render
from topwork.runtime.backend import software_versions
from topwork.training.examples import index_examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Provenance of a revision, as recorded in its manifest."""

    change: str = "fit"
    parent: int = 0
    operation: str = ""
    comparison: Comparison | None = None
    rejection: Rejection | None = None


FIT = Origin()


def publish(
    repository: Repository,
    exemplars: Exemplars,
    learned: Learned,
    *,
    model: str,
    backbone: str,
    shards: Sequence[ShardRef],
    seed: int,
    recipe: Recipe,
    making: Making,
    backbone_info: str | None = None,
    origin: Origin = FIT,
    precision_gate: PrecisionGate | None = None,
    preview_pixels: int = SIDE,
    sources: ShardRows | None = None,
) -> Manifest:
    """Publish the head learnt from the exemplars of ``shards`` as the model's next revision.

    ``backbone`` and ``shards`` are digests of stored files. ``backbone_info`` is the digest of the
    backbone's backbone.json; None is the digest of the stored file. ``sources`` are the places of
    the exemplars in the shards; None: those of ``put_exemplars``, which has just stored them. The
    report compares with the serving revision. The new revision does not serve yet.
    """
    head = learned.head
    if sources is None:
        now = datetime.now(UTC)
        shards = [replace(ref, added=now) for ref in shards]
    draft = Manifest(
        model=model,
        revision=0,  # Repository.publish sets it, and the digests of the files
        parent=origin.parent,
        labels=exemplars.labels,
        backbone=backbone,
        backbone_info=backbone_info or repository.backbone_info_digest(backbone),
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
        unknown_distribution=head.unknown.distribution if head.unknown else None,
        precision_gate=precision_gate,
        change=origin.change,
        operation=origin.operation,
        comparison=origin.comparison,
        rejection=origin.rejection,
        created=datetime.now(UTC),
        versions=software_versions(),
        schema=GROUPS_SCHEMA if exemplars.groups.any() else SCHEMA,
        preview_pixels=preview_pixels,
    )
    places = locate(exemplars)
    content = Content(
        manifest=draft,
        metrics=learned.metrics,
        backbone=repository.backbone(draft),
        exemplars=exemplars,
        judged=learned.judged,
        parent=_serving(repository, model),
        making=making,
        places=places,
    )
    return repository.publish(
        draft,
        head=to_onnx(head),
        metrics=learned.metrics,
        index=index_examples(
            exemplars, learned.judged, seed, sources or ShardRows.of_split(exemplars), places
        ),
        report=lambda manifest: render(replace(content, manifest=manifest)).encode(),
    )


def _serving(repository: Repository, model: str) -> Parent | None:
    try:
        manifest = repository.manifest(model, repository.serving(model))
    except NotFound:
        return None
    return Parent(manifest=manifest, metrics=repository.metrics(manifest))
