"""Intake of changes: idempotency key, quota check, storage of images, submission."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Protocol, cast, get_args

from topwork.bundle.draft import Current
from topwork.bundle.examples import ExampleIndex
from topwork.bundle.manifest import Manifest
from topwork.bundle.names import check_label, compose_label
from topwork.bundle.recipe import HeadKind, Normalisation, Recipe
from topwork.changes.examples import check_examples
from topwork.changes.jobs import Job
from topwork.changes.kinds import KINDS, check_change
from topwork.changes.operations import Admit, Operations
from topwork.changes.quota import Quotas
from topwork.changes.requests import ChangeRequest, UploadItem
from topwork.changes.rows import OperationState, check_same, subject_of
from topwork.changes.uploads import Uploads
from topwork.errors import InvalidInput, TopworkError
from topwork.limits import ServerLimits

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


_DIGEST = re.compile("[0-9a-fA-F]{64}")


class Models(Protocol):
    """The models in memory; see ``topwork.serving.registry``."""

    def current(self, model: str) -> Current:
        """Return the manifest of the serving revision, or the draft. Raises NotFound."""


class Examples(Protocol):
    """The examples of the served models; see ``topwork.serving.examples``."""

    async def index(self, manifest: Manifest) -> ExampleIndex:
        """Return the index of a revision's examples. Raises Corrupt, Unavailable."""


class CheckEvaluation(Protocol):
    """Check of an evaluation; see ``topwork.changes.evaluations``."""

    def __call__(self, job: Job, operation: str, *, complete: bool) -> None:
        """Raise an error if it cannot be done; ``complete``: all images are in the job."""


class Intake:
    """Accepts changes: stores the images, then the operation, then returns it.

    A repeated request id returns its operation, and its images are not read. Both methods raise
    InvalidInput, NotFound, AlreadyExists, NotReady, Stale, Overloaded and QuotaExceeded.
    """

    def __init__(
        self,
        models: Models,
        examples: Examples,
        operations: Operations,
        uploads: Uploads,
        quotas: Quotas,
        limits: ServerLimits,
        check_evaluation: CheckEvaluation | None = None,
    ) -> None:
        self._models = models
        self._examples = examples
        self._operations = operations
        self._uploads = uploads
        self._quotas = quotas
        self._limits = limits
        self._check_evaluation = check_evaluation

    async def upload(self, items: AsyncIterator[UploadItem]) -> OperationState:
        """Store the images of an upload and its operation durably, and return the operation."""
        request = await self._uploads.request(items)
        job, request_id = self._job(request), _request_id(request)
        current = self._models.current(job.model)
        repeated = await self._find_repeated(job, request_id)
        if repeated is not None:
            return repeated
        check_change(job, current, self._limits)
        await self._check_sets(job, request_id, complete=False)
        pending = await self._operations.pending_bytes(job.model)
        quota = await asyncio.to_thread(self._quotas.of, job.model, pending=pending)
        stored = job.evaluation is not None and bool(job.evaluation.name)
        labels = job.labels if job.evaluation is None else None
        uploads, refused, size = await self._uploads.store(
            items,
            quota,
            labels,
            taken=await self._uploads.taken(current),
            may_be_empty=stored,
        )
        job = replace(job, uploads=uploads, refused=refused, accepted=time.time())
        await self._check_sets(job, request_id, complete=True)
        # Held until the operation is committed, from which gc knows that they are needed.
        async with self._uploads.holding(uploads):
            return await self._enqueue(job, request_id, size=size)

    async def submit(self, request: ChangeRequest) -> OperationState:
        """Store the operation of a change without images durably, and return it."""
        job, request_id = self._job(request), _request_id(request)

        async def admit(pending: int) -> None:
            if not KINDS[job.kind].frees:
                await asyncio.to_thread(self._check_quota, job.model, pending)

        return await self._enqueue(job, request_id, admit=admit)

    async def _enqueue(
        self, job: Job, request_id: str, *, size: int = 0, admit: Admit | None = None
    ) -> OperationState:
        """Store a job's operation, or return that of a repeated call, even if it fails a check."""
        current = self._models.current(job.model)
        try:
            check_change(job, current, self._limits)
            if job.digests:
                assert isinstance(current, Manifest), (
                    "check_change refuses such a change of a draft"
                )
                stored = await self._examples.index(current)
                await asyncio.to_thread(check_examples, job, stored, self._limits)
            return await self._operations.submit(job, request_id, size=size, admit=admit)
        except TopworkError:
            repeated = await self._find_repeated(job, request_id)
            if repeated is None:
                raise
            return repeated

    async def _check_sets(self, job: Job, operation: str, *, complete: bool) -> None:
        if job.evaluation is not None and self._check_evaluation is not None:
            await asyncio.to_thread(self._check_evaluation, job, operation, complete=complete)

    def _check_quota(self, model: str, pending: int) -> None:
        self._quotas.of(model, pending=pending).check(0, 0, 0)

    def _job(self, request: ChangeRequest) -> Job:
        """Return the job of a request, without its images.

        Only new labels are checked: models of earlier versions may have invalid labels.
        """
        kind, limits, path = KINDS[request.kind], self._limits, request.path
        label = new_label = ""
        recipe = None
        if kind.label not in {"none", "several"} and (request.label or kind.label != "optional"):
            check = compose_label
            if kind.label == "new" or (
                kind.label == "any"
                and compose_label(request.label, limits=limits, field=f"{path}label")
                not in self._models.current(request.model).labels
            ):
                check = check_label
            label = check(request.label, limits=limits, field=f"{path}label")
        if kind.renames:
            new_label = check_label(request.new_label, limits=limits, field=f"{path}new_label")
        if kind.has_recipe:
            parent = self._models.current(request.model).recipe
            recipe = choose_recipe(request.head, request.normalisation, parent)
        return Job(
            kind=request.kind,
            model=request.model,
            accepted=time.time(),
            label=label,
            labels=self._labels(request) if kind.label == "several" else (),
            new_label=new_label,
            recipe=recipe,
            gate=request.gate,
            expected_revision=request.expected_revision,
            validate_only=request.validate_only,
            digests=_digests(request.digests, limits) if kind.examples else (),
            evaluation=request.evaluation,
        )

    def _labels(self, request: ChangeRequest) -> tuple[str, ...]:
        """Return the labels of a request with several, sorted. Raises InvalidInput."""
        limits, field = self._limits, f"{request.path}labels"
        if not 1 <= len(request.labels) <= limits.max_labels:
            raise InvalidInput(
                f"the request has {len(request.labels)} labels; 1 to {limits.max_labels} are "
                "possible",
                field=field,
            )
        known = self._models.current(request.model).labels
        labels = set[str]()
        for number, given in enumerate(request.labels):
            path = f"{field}[{number}]"
            label = compose_label(given, limits=limits, field=path)
            if label not in known:
                check_label(label, limits=limits, field=path)
            if label in labels:
                raise InvalidInput(f"the label {label!r} is repeated", field=path)
            labels.add(label)
        return tuple(sorted(labels))

    async def _find_repeated(self, job: Job, request_id: str) -> OperationState | None:
        """Return the operation of a repeated call. Raises AlreadyExists if its subject differs."""
        operation = await self._operations.find(request_id)
        if operation is not None:
            check_same(operation, subject_of(job))
        return operation


def normalise_request_id(request_id: str, *, field: str) -> str:
    """Return ``request_id`` in lower case, or a new UUID if it is empty.

    Raises InvalidInput if it is not a UUID.
    """
    if not request_id:
        return str(uuid.uuid4())
    if not _UUID.fullmatch(request_id):  # uuid.UUID also takes braces, 0x and non-ASCII digits
        raise InvalidInput(f"request_id {request_id[:80]!r} is not a UUID", field=field)
    return request_id.lower()


def _digests(digests: Sequence[str], limits: ServerLimits) -> tuple[str, ...]:
    """Return image digests sorted, each once, in lower case. Raises InvalidInput."""
    most = limits.max_images_per_upload
    if not digests or len(digests) > most:
        raise InvalidInput(
            f"the request names {len(digests)} examples; it must name 1 to {most}",
            field="digests",
            reason="TOO_MANY_IMAGES" if digests else None,
        )
    for number, digest in enumerate(digests):
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(
                f"{digest[:80]!r} is not an image digest, 64 hexadecimal digits",
                field=f"digests[{number}]",
            )
    return tuple(sorted({digest.lower() for digest in digests}))


def _request_id(request: ChangeRequest) -> str:
    return normalise_request_id(request.request_id, field=f"{request.path}request_id")


def choose_recipe(head: str, normalisation: str, default: Recipe) -> Recipe:
    """Return a recipe, with ``default`` for what is empty. Raises InvalidInput."""
    return Recipe(
        head=cast("HeadKind", _choice(head or default.head, get_args(HeadKind), field="head")),
        normalisation=cast(
            "Normalisation",
            _choice(
                normalisation or default.normalisation,
                get_args(Normalisation),
                field="normalisation",
            ),
        ),
    )


def _choice(value: str, choices: tuple[str, ...], *, field: str) -> str:
    if value not in {"auto", *choices}:
        raise InvalidInput(
            f"{field} {value[:80]!r} must be auto or one of {', '.join(choices)}", field=field
        )
    return value
