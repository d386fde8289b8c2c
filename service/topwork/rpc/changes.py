"""Conversion of messages that ask for changes of a model into plain requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice
from typing import TypeAlias

from topwork.changes.jobs import ChangeKind
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.limits import ServerLimits
from topwork.rpc import convert
from topwork.v1 import change_pb2 as change_pb

UploadMessage: TypeAlias = change_pb.AddClassRequest | change_pb.AddExamplesRequest
ChangeMessage: TypeAlias = (
    change_pb.AddClassConfig
    | change_pb.AddExamplesConfig
    | change_pb.RemoveClassRequest
    | change_pb.RenameClassRequest
    | change_pb.RetrainRequest
)


def from_change(
    kind: ChangeKind, message: ChangeMessage, *, path: str = "", **own: str
) -> ChangeRequest:
    """Return the request of a message; ``own`` are the fields that only its kind has.

    Errors name its fields with ``path`` before them. Raises InvalidInput.
    """
    options = f"{path}options"
    return ChangeRequest(
        kind=kind,
        model=convert.resource_id(message.model, collection="models", field=f"{path}model"),
        request_id=message.request_id,
        gate=convert.from_gate(message.options.gate, field=f"{options}.gate"),
        expected_revision=convert.number(
            message.options.expected_revision, field=f"{options}.expected_revision"
        ),
        validate_only=message.options.validate_only,
        path=path,
        **own,
    )


async def from_upload(
    kind: ChangeKind, messages: AsyncIterator[UploadMessage], limits: ServerLimits
) -> AsyncIterator[UploadItem]:
    """Yield the request of an upload and its images, a portion a message. Raises InvalidInput.

    Of a message with more images than an upload may have only one too many is converted.
    """
    async for message in messages:
        if message.HasField("config"):
            config = message.config
            yield from_change(kind, config, path="config.", label=config.label)
        yield [
            UploadedImage(
                name=image.display_name[: limits.max_display_name_length], content=image.content
            )
            for image in islice(message.images, limits.max_images_per_upload + 1)
        ]
