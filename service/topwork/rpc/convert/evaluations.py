"""Conversion of evaluations and evaluation sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import islice

from topwork.bundle.evaluation import EvaluationResult, Subgroup, UnknownDetection
from topwork.bundle.evaluation_sets import EvaluationSet, check_max_drop, check_name
from topwork.bundle.metrics import wilson_interval
from topwork.bundle.names import compose_label
from topwork.changes.jobs import EvaluationJob, SkippedUpload
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.errors import InvalidInput
from topwork.limits import ServerLimits
from topwork.rpc.convert import fields
from topwork.rpc.convert.fields import operation_name, timestamp
from topwork.rpc.convert.requests import from_uploaded
from topwork.rpc.convert.revisions import to_comparison, to_metrics
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb
from topwork.wire import status as statuses

MAX_COLUMNS = 20
"""Raising it accepts more columns of an image."""


async def from_evaluate(
    messages: AsyncIterator[evaluation_pb.EvaluateRequest], limits: ServerLimits
) -> AsyncIterator[UploadItem]:
    """Yield the request of an evaluation and the images of each message. Raises InvalidInput.

    A message with too many images is cut off at one more than an upload may have.
    """
    async for message in messages:
        if message.HasField("config"):
            yield _from_config(message.config)
        yield [
            _from_image(image, f"images[{number}]", limits)
            for number, image in enumerate(islice(message.images, limits.max_images_per_upload + 1))
        ]


def _from_config(config: evaluation_pb.EvaluateConfig) -> ChangeRequest:
    name, max_drop = config.evaluation_set, None
    if name:
        check_name(name, field="config.evaluation_set")
    if config.HasField("max_drop"):
        max_drop = check_max_drop(config.max_drop, field="config.max_drop")
        if not name:
            text = "max_drop needs evaluation_set: only a stored set can be a gate"
            raise InvalidInput(text, field="config.max_drop")
    return ChangeRequest(
        kind="evaluate",
        model=fields.model_id(config.model, field="config.model"),
        request_id=config.request_id,
        evaluation=EvaluationJob(
            revision=fields.number(config.revision, field="config.revision"),
            compare=fields.number(config.compare_revision, field="config.compare_revision"),
            name=name,
            max_drop=max_drop,
        ),
        path="config.",
    )


def _from_image(
    image: evaluation_pb.EvaluationImage, path: str, limits: ServerLimits
) -> UploadedImage:
    label, most = image.label, limits.max_label_length
    if label:
        label = compose_label(label, limits=limits, field=f"{path}.label")
    columns = tuple(sorted(image.columns.items()))
    if len(columns) > MAX_COLUMNS:
        text = f"an image has {len(columns)} columns; the limit is {MAX_COLUMNS}"
        raise InvalidInput(text, field=f"{path}.columns")
    for text in (text for column in columns for text in column):
        if len(text) > most:
            raise InvalidInput(
                f"the column text {text[:20]!r}... has {len(text)} characters; the limit is {most}",
                field=f"{path}.columns",
            )
    return UploadedImage(
        name=image.display_name[: limits.max_display_name_length],
        content=from_uploaded(image, field=path),
        label=label,
        columns=columns,
    )


def to_evaluation(
    result: EvaluationResult, skipped: Sequence[SkippedUpload] = ()
) -> evaluation_pb.Evaluation:
    """Return the result of an evaluation."""
    evaluation = result.evaluation
    name = (
        f"{fields.evaluation_set_name(result.model, result.name)}/evaluations/{result.revision}"
        if result.name
        else ""
    )
    return evaluation_pb.Evaluation(
        name=name,
        model=f"models/{result.model}",
        revision=result.revision,
        operation=operation_name(result.operation),
        create_time=timestamp(result.created),
        metrics=None if evaluation is None else to_metrics(evaluation.metrics),
        unknown=None if evaluation is None else _to_unknown(evaluation.unknown),
        subgroups=[] if evaluation is None else map(_to_subgroup, evaluation.subgroups),
        compared_revision=result.compared,
        comparison=to_comparison(result.comparison),
        lacking_labels=_to_counts(result.lacking),
        repeated_images=result.repeated,
        related_images=result.related,
        skipped_images=[
            change_pb.SkippedImage(
                display_name=image.name, error=statuses.from_skipped(image.reason, image.message)
            )
            for image in skipped
        ],
        gate_failure=result.failure,
    )


def to_evaluation_set(stored: EvaluationSet, files: int) -> evaluation_pb.EvaluationSet:
    """Return an evaluation set, of which the files of ``files`` images are stored."""
    return evaluation_pb.EvaluationSet(
        name=fields.evaluation_set_name(stored.model, stored.name),
        max_drop=stored.max_drop,
        images=len(stored.images),
        labels=_to_counts(Counter(image.label for image in stored.images)),
        renamed_labels={label: names[0] for label, names in stored.renamed.items()},
        columns=sorted({column for image in stored.images for column, _ in image.columns}),
        backbones=[embedded.backbone for embedded in stored.embedded],
        stored_images=files,
        create_time=timestamp(stored.created),
        operation=operation_name(stored.operation),
    )


def _to_counts(counts: dict[str, int] | Counter[str]) -> list[evaluation_pb.LabelCount]:
    return [
        evaluation_pb.LabelCount(label=label, images=images)
        for label, images in sorted(counts.items())
    ]


def _to_unknown(found: UnknownDetection | None) -> evaluation_pb.UnknownDetection | None:
    if found is None:
        return None
    return evaluation_pb.UnknownDetection(
        known_images=found.known,
        false_rejects=found.false_rejects,
        unknown_images=found.strangers,
        detected=found.detected,
        auroc=found.auroc,
    )


def _to_subgroup(row: Subgroup) -> evaluation_pb.Subgroup:
    low, high = wilson_interval(row.right, row.images)
    return evaluation_pb.Subgroup(
        column=row.column,
        value=row.value,
        images=row.images,
        right=row.right,
        expected_calibration_error=row.ece,
        false_rejects=row.false_rejects,
        accuracy_low=low,
        accuracy_high=high,
    )
