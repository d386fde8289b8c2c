"""Conversion of models and revisions into messages."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from topwork.bundle.comparison import Comparison, TaughtLabel
from topwork.bundle.draft import Draft
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.serving import Move, ServingState
from topwork.inputs.audio import AudioSpec
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.inputs.kinds import kind_of
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.text import TextSpec
from topwork.limits import ServerLimits
from topwork.rpc.convert.fields import operation_name, revision_name, timestamp
from topwork.serving.backbones import LoadedBackbone
from topwork.v1 import input_pb2 as input_pb
from topwork.v1 import model_lifecycle_pb2 as lifecycle_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb

MOVES = 100
"""Raising it shows more moves of the serving pointer in each model's message."""


@dataclass(frozen=True, slots=True)
class PublishedRevision:
    """Stored files of a revision."""

    manifest: Manifest
    metrics: Metrics | None
    """None if the file is damaged."""
    backbone: BackboneInfo | None
    """None if the file is damaged."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """Stored state of a model."""

    state: ServingState
    serving: PublishedRevision
    revisions: list[int]
    loaded: LoadedBackbone | None = None
    """Backbone of the serving revision in this server."""


def to_model(stored: StoredModel, limits: ServerLimits) -> model_pb.Model:
    """Return a model with its serving revision."""
    name = f"models/{stored.serving.manifest.model}"
    return model_pb.Model(
        name=name,
        serving_revision=to_revision(stored.serving),
        revisions=stored.revisions,
        pinned_revisions=stored.state.pinned,
        moves=[_move(move) for move in reversed(stored.state.moves[-MOVES:])],
        limits=model_pb.Limits(**asdict(limits)),
        loaded_backbone=None
        if stored.loaded is None
        else model_pb.LoadedBackbone(
            digest=stored.loaded.info.digest,
            precision=stored.loaded.info.precision,
            agreement=stored.loaded.agreement,
        ),
        input_kind=_input_kind(stored.serving.backbone),
    )


def to_draft_model(
    draft: Draft, info: BackboneInfo | None, revisions: list[int], limits: ServerLimits
) -> model_pb.Model:
    """Return a model that does not serve yet; ``info`` is None if its backbone is damaged."""
    return model_pb.Model(
        name=f"models/{draft.model}",
        revisions=revisions,
        limits=model_pb.Limits(**asdict(limits)),
        draft=lifecycle_pb.Draft(
            labels=draft.labels,
            images=draft.images,
            missing_labels=draft.missing_labels,
            backbone=None if info is None else to_backbone(info),
            create_time=timestamp(draft.created),
            seed=draft.seed,
            head=draft.recipe.head,
            normalisation=draft.recipe.normalisation,
        ),
        input_kind=_input_kind(info),
    )


def to_revision(published: PublishedRevision) -> revision_pb.Revision:
    """Return a published revision."""
    manifest, info = published.manifest, published.backbone
    return revision_pb.Revision(
        name=revision_name(manifest.model, manifest.revision),
        revision=manifest.revision,
        parent_revision=manifest.parent,
        labels=manifest.labels,
        backbone=None if info is None else to_backbone(info),
        metrics=None if published.metrics is None else to_metrics(published.metrics),
        create_time=timestamp(manifest.created),
        head=revision_pb.Head(
            kind=manifest.chosen.kind,
            normalisation=manifest.chosen.normalisation,
            strength=manifest.chosen.strength,
            temperature=manifest.chosen.temperature,
            unknown_threshold=manifest.chosen.unknown_threshold,
        ),
        change=manifest.change,
        operation=operation_name(manifest.operation),
        rejection=manifest.rejection.failures if manifest.rejection is not None else (),
        comparison=to_comparison(manifest.comparison),
    )


def to_backbone(info: BackboneInfo) -> revision_pb.Backbone:
    """Return the description of a backbone."""
    backbone = revision_pb.Backbone(
        name=info.name, digest=info.digest, width=info.width, precision=info.precision
    )
    spec = info.preprocess
    if isinstance(spec, PreprocessSpec):
        backbone.preprocess.MergeFrom(revision_pb.PreprocessSpec(**asdict(spec)))
    elif isinstance(spec, EmbeddingSpec):
        backbone.embedding.MergeFrom(input_pb.EmbeddingSpace(space=spec.space, width=spec.width))
    elif isinstance(spec, TextSpec):
        backbone.text.MergeFrom(revision_pb.TextSpec(max_tokens=spec.max_tokens))
    elif isinstance(spec, AudioSpec):
        backbone.audio.MergeFrom(
            revision_pb.AudioSpec(
                rate_hz=spec.rate,
                window_samples=spec.window,
                hop_samples=spec.hop,
                max_seconds=spec.max_seconds,
            )
        )
    return backbone


def _input_kind(info: BackboneInfo | None) -> str:
    return "" if info is None else kind_of(info.preprocess).name


def damaged_revision(model: str, revision: int) -> revision_pb.Revision:
    """Return a revision that cannot be read: its name and number."""
    return revision_pb.Revision(name=revision_name(model, revision), revision=revision)


def _taught(taught: TaughtLabel) -> revision_pb.TaughtLabel:
    return revision_pb.TaughtLabel(
        label=taught.label,
        images=taught.images,
        recall=taught.recall,
        recall_low=taught.low,
        recall_high=taught.high,
    )


def to_comparison(comparison: Comparison | None) -> revision_pb.Comparison | None:
    """Return a comparison of two revisions."""
    if comparison is None:
        return None
    return revision_pb.Comparison(
        images=comparison.images,
        accuracy_before=comparison.accuracy_before,
        accuracy_after=comparison.accuracy_after,
        drop=comparison.drop,
        drop_low=comparison.drop_low,
        drop_high=comparison.drop_high,
        calibration_error_before=comparison.ece_before,
        calibration_error_after=comparison.ece_after,
        labels=[
            revision_pb.LabelComparison(
                label=label.label,
                images=label.images,
                recall_before=label.recall_before,
                recall_after=label.recall_after,
            )
            for label in comparison.labels
        ],
        taught=None if comparison.taught is None else _taught(comparison.taught),
        taught_labels=map(_taught, comparison.all_taught),
        confusions=[
            revision_pb.Confusion(
                label=confusion.label,
                called=confusion.called,
                images=confusion.images,
                share=confusion.share,
            )
            for confusion in comparison.confusions
        ],
    )


def to_metrics(metrics: Metrics) -> revision_pb.Metrics:
    """Return the metrics of a revision."""
    return revision_pb.Metrics(
        images=metrics.images,
        folds=metrics.folds,
        accuracy=metrics.accuracy,
        accuracy_low=metrics.accuracy_low,
        accuracy_high=metrics.accuracy_high,
        log_loss=metrics.log_loss,
        per_label=[
            revision_pb.LabelMetrics(
                label=label.label,
                images=label.images,
                precision=label.precision,
                recall=label.recall,
            )
            for label in metrics.per_label
        ],
        confusion=[count for row in metrics.confusion for count in row],
        expected_calibration_error=metrics.ece,
        unknown=None
        if metrics.unknown is None
        else revision_pb.UnknownMetrics(
            auroc=metrics.unknown.auroc,
            false_reject_rate=metrics.unknown.false_reject_rate,
            detection_rate=metrics.unknown.detection_rate,
        ),
    )


def _move(move: Move) -> model_pb.ServingMove:
    return model_pb.ServingMove(
        revision=move.revision,
        previous_revision=move.previous,
        cause=move.why,
        operation=operation_name(move.operation),
        time=timestamp(move.time),
    )
