"""How a request to change a model becomes a durable operation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Literal, TypeAlias, cast, get_args

from topwork.access.principals import caller
from topwork.bundle.names import check_label, compose_label
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.changes.change_rules import check_change
from topwork.changes.jobs import Job, Kind
from topwork.changes.operations import Operations, new_request_id
from topwork.changes.room import ModelRoom, Rooms
from topwork.changes.rows import Operation, check_same, subject_of
from topwork.errors import InvalidInput, NotFound
from topwork.limits import Limits
from topwork.rpc import convert
from topwork.rpc.uploads import Part, Uploads
from topwork.serving.registry import Registry
from topwork.v1 import change_pb2 as change_pb

Uploading = Literal["add_class", "add_examples"]
Plain: TypeAlias = (
    change_pb.RemoveClassRequest | change_pb.RenameClassRequest | change_pb.RetrainRequest
)
Config: TypeAlias = change_pb.AddClassConfig | change_pb.AddExamplesConfig | Plain


class Changes:
    """Takes requests: images first, then the operation, and only then the answer.

    A request id that is known returns its operation at once, whatever images follow. All methods
    raise InvalidInput, NotFound, AlreadyExists, NotReady, Stale, Overloaded and QuotaExceeded.
    """

    def __init__(
        self,
        registry: Registry,
        operations: Operations,
        uploads: Uploads,
        rooms: Rooms,
        limits: Limits,
    ) -> None:
        self._registry = registry
        self._operations = operations
        self._uploads = uploads
        self._rooms = rooms
        self._limits = limits

    async def upload(self, kind: Uploading, parts: AsyncIterator[Part]) -> Operation:
        """Store the images of an upload and its operation durably, and return the operation."""
        with self._uploads.slots.hold(caller().share):
            return await self._upload(kind, parts)

    async def _upload(self, kind: Uploading, parts: AsyncIterator[Part]) -> Operation:
        first = await self._uploads.first(parts)
        if not first.HasField("config"):
            raise InvalidInput("the first message has no config", field="config")
        job = self._job(first.config, kind=kind, label=first.config.label, prefix="config.")
        request_id = new_request_id(first.config.request_id, field="config.request_id")
        known = await self._known(job, request_id)
        if known is not None:
            return known
        room = await self._room(job.model)
        uploads, refused, size = await self._uploads.store(first, parts, room)
        job = replace(job, uploads=uploads, refused=refused, accepted=time.time())
        known = await self._known(job, request_id)  # much may have happened since
        if known is not None:
            return known
        # No gc deletes them between the look whether they are there and the operation's commit,
        # by which it knows that they are needed.
        async with self._uploads.holding(uploads):
            return await self._operations.submit(job, request_id, size=size)

    async def remove(self, request: change_pb.RemoveClassRequest) -> Operation:
        """Let a label be removed."""
        return await self._ask(
            self._job(request, kind="remove_class", label=request.label), request
        )

    async def rename(self, request: change_pb.RenameClassRequest) -> Operation:
        """Let a label be renamed."""
        job = self._job(request, kind="rename_class", label=request.label)
        new_label = check_label(request.new_label, limits=self._limits, field="new_label")
        return await self._ask(replace(job, new_label=new_label), request)

    async def retrain(self, request: change_pb.RetrainRequest) -> Operation:
        """Let a head be solved anew."""
        job = self._job(request, kind="retrain", label=None)
        parent = self._registry.serving(job.model).recipe
        recipe = Recipe(
            head=cast(
                "HeadKind", _choice(request.head or parent.head, get_args(HeadKind), field="head")
            ),
            normalisation=cast(
                "Normalisation",
                _choice(
                    request.normalisation or parent.normalisation,
                    get_args(Normalisation),
                    field="normalisation",
                ),
            ),
        )
        return await self._ask(replace(job, recipe=recipe), request)

    async def _ask(self, job: Job, request: Plain) -> Operation:
        request_id = new_request_id(request.request_id, field="request_id")
        known = await self._known(job, request_id)
        if known is not None:
            return known
        if job.kind != "remove_class":  # which lets things go
            room = await self._room(job.model)
            await asyncio.to_thread(room.check, 0, 0, 0)
        return await self._operations.submit(job, request_id)

    async def _room(self, model: str) -> ModelRoom:
        pending = await self._operations.pending_bytes(model)
        return await asyncio.to_thread(self._rooms.of, model, pending=pending)

    def _job(self, config: Config, *, kind: Kind, label: str | None, prefix: str = "") -> Job:
        """Return the job of a request, without its images.

        Only new labels are checked: models of earlier versions may have labels that fail the check.
        """
        field = f"{prefix}options"
        check = check_label if kind == "add_class" else compose_label
        return Job(
            kind=kind,
            model=convert.resource_id(config.model, collection="models", field=f"{prefix}model"),
            label=""
            if label is None
            else check(label, limits=self._limits, field=f"{prefix}label"),
            accepted=time.time(),
            gate=convert.from_gate(config.options.gate, field=f"{field}.gate"),
            expected_revision=convert.number(
                config.options.expected_revision, field=f"{field}.expected_revision"
            ),
            validate_only=config.options.validate_only,
        )

    async def _known(self, job: Job, request_id: str) -> Operation | None:
        """Return the operation of a repeated call; raise what forbids one that is not."""
        serving = self._registry.serving(job.model)
        try:
            operation = await self._operations.get(request_id)
        except NotFound:
            check_change(job, serving, self._limits)
            await self._operations.check_room(job.model)
            return None
        check_same(operation, subject_of(job))
        return operation


def _choice(given: str, known: tuple[str, ...], *, field: str) -> str:
    if given not in {"auto", *known}:
        raise InvalidInput(
            f"{field} {given[:80]!r} must be auto or one of {', '.join(known)}", field=field
        )
    return given
