"""Conversion of the messages that request changes of a model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice
from typing import Any, TypeAlias

from topwork.bundle.comparison import Gate
from topwork.changes.jobs import ChangeKind
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.errors import InvalidInput
from topwork.inputs.kinds import AnyInput
from topwork.limits import ServerLimits
from topwork.rpc.convert import fields
from topwork.rpc.convert.inputs import one_of
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb

UploadMessage: TypeAlias = (
    change_pb.AddClassRequest | change_pb.AddExamplesRequest | change_pb.AddClassesRequest
)
ChangeMessage: TypeAlias = (
    change_pb.AddClassConfig
    | change_pb.AddExamplesConfig
    | change_pb.AddClassesConfig
    | change_pb.RemoveClassRequest
    | change_pb.RenameClassRequest
    | change_pb.RetrainRequest
    | change_pb.RemoveExamplesRequest
    | change_pb.MoveExamplesRequest
)


def from_change(
    kind: ChangeKind, message: ChangeMessage, *, path: str = "", **own: Any
) -> ChangeRequest:
    """Return the request of a message; ``own`` are the fields that only this kind has.

    Errors name fields with ``path`` before them. Raises InvalidInput.
    """
    options = f"{path}options"
    return ChangeRequest(
        kind=kind,
        model=fields.model_id(message.model, field=f"{path}model"),
        request_id=message.request_id,
        gate=from_gate(message.options.gate, path=f"{options}.gate"),
        expected_revision=fields.number(
            message.options.expected_revision, field=f"{options}.expected_revision"
        ),
        validate_only=message.options.validate_only,
        path=path,
        **own,
    )


async def from_upload(
    kind: ChangeKind, messages: AsyncIterator[UploadMessage], limits: ServerLimits
) -> AsyncIterator[UploadItem]:
    """Yield the request of an upload and the images of each message. Raises InvalidInput.

    A message with too many images is cut off at one more than an upload may have.
    """
    async for message in messages:
        if message.HasField("config"):
            config = message.config
            labels = (
                {"labels": tuple(islice(config.labels, limits.max_labels + 1))}
                if isinstance(config, change_pb.AddClassesConfig)
                else {"label": config.label}
            )
            yield from_change(kind, config, path="config.", **labels)
        yield [
            UploadedImage(
                name=image.display_name[: limits.max_display_name_length],
                content=from_uploaded(image, field=f"images[{number}]"),
                label=image.label,
            )
            for number, image in enumerate(islice(message.images, limits.max_images_per_upload + 1))
        ]


def from_uploaded(
    image: change_pb.TrainingImage | evaluation_pb.EvaluationImage, *, field: str
) -> AnyInput:
    """Return the content of an uploaded image, or its input. Raises InvalidInput."""
    return one_of(
        image.content, image.input, given=image.HasField("input"), name="content", field=field
    )


def from_gate(gate: change_pb.Gate, *, path: str) -> Gate:
    """Return a gate, with defaults for unset fields. Raises InvalidInput."""
    given: dict[str, Any] = {field.name: value for field, value in gate.ListFields()}
    for name in ("max_old_class_drop", "min_new_class_recall"):
        if not 0 <= given.get(name, 0) <= 1:  # false for NaN
            raise InvalidInput(
                f"{name} is {given[name]:g}; it must be 0 to 1", field=f"{path}.{name}"
            )
    if given.get("max_conflicts", 0) < 0:
        raise InvalidInput(
            f"max_conflicts is {given['max_conflicts']}; it must not be negative",
            field=f"{path}.max_conflicts",
        )
    return Gate(**given)
