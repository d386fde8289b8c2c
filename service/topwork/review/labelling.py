"""Labelling of candidates: one operation for all labels of a call; claims until it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from topwork.bundle.candidates import CandidateStore, Claim
from topwork.bundle.comparison import Gate
from topwork.bundle.names import check_label, compose_label
from topwork.bundle.store import Repository
from topwork.changes.intake import Intake, normalise_request_id
from topwork.changes.jobs import ChangeKind
from topwork.changes.operations import Operations
from topwork.changes.requests import ChangeRequest, UploadedImage, UploadItem
from topwork.changes.rows import OperationState
from topwork.errors import AlreadyExists, InvalidInput, NotReady
from topwork.inputs.kinds import stored_input
from topwork.inputs.spec import InputSpec
from topwork.limits import ServerLimits
from topwork.review.candidates import readable
from topwork.serving.registry import Registry

SUBMIT_SECONDS = 600.0
"""Raising it keeps the claims of a server that died during a submission for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person says about a candidate."""

    digest: str
    label: str | None
    """None: discard it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Conditions of the operations; see ChangeRequest."""

    gate: Gate
    expected_revision: int = 0
    validate_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Result of a call: the operations that learn candidates, and the number of discarded ones."""

    operations: tuple[OperationState, ...]
    discarded: int


class Labelling:
    """Turns candidates into examples through the intake of uploads, and discards others."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        intake: Intake,
        operations: Operations,
        limits: ServerLimits,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._intake = intake
        self._operations = operations
        self._limits = limits

    async def label(
        self, model: str, decisions: Sequence[Decision], request_id: str, conditions: Conditions
    ) -> Labelled:
        """Label or discard candidates; a repeated call returns the same operations.

        All candidates are accepted, or none. Raises InvalidInput, NotFound, NotReady, and the
        errors of the intake.
        """
        identifier = normalise_request_id(request_id, field="request_id")
        self._check(decisions)
        labels = set(self._registry.serving(model).labels)
        chosen: dict[str, list[str]] = {}
        for place, decision in enumerate(decisions):
            if decision.label is not None:
                label = self._label(decision.label, labels, f"labels[{place}].label")
                chosen.setdefault(label, []).append(decision.digest)
        discarded = [decision.digest for decision in decisions if decision.label is None]
        known = await self._operations.find(identifier)
        await self.settle(model)
        accepted = []
        if known is None:
            self._check_counts(chosen, labels)
            given = {digest: label for label, digests in chosen.items() for digest in digests}
        else:
            _check_repeated(known, model, chosen)
            accepted, given = [known], {}
        store = CandidateStore(self._repository, model)
        now = time.time()
        claims = {
            digest: Claim(operation=identifier, label=label, time=now)
            for digest, label in given.items()
        }
        claim = partial(_claim, store, claims, discarded, keep=conditions.validate_only)
        joined = await readable(partial(asyncio.to_thread, claim))
        for name in sorted(set(joined.values())):
            accepted.append(await self._operations.get(name))
        fresh = {digest: label for digest, label in given.items() if digest not in joined}
        if fresh:
            request = _request(model, fresh, labels, identifier, conditions)
            manifest = self._registry.serving(model)
            info = await readable(partial(asyncio.to_thread, self._repository.backbone, manifest))
            upload = _upload(store, request, fresh, info.preprocess)
            try:
                accepted.insert(0, await self._intake.upload(upload))
            except BaseException:
                if not conditions.validate_only:  # they return to the queue
                    await asyncio.shield(asyncio.to_thread(_release, store, [*fresh]))
                raise
        return Labelled(operations=tuple(accepted), discarded=len(discarded))

    async def settle(self, model: str) -> None:
        """Delete the candidates whose operation has succeeded, and release those of failed ones."""
        store = CandidateStore(self._repository, model)
        listing = await readable(partial(asyncio.to_thread, store.listing))
        learnt: list[str] = []
        released: list[str] = []
        states: dict[str, OperationState | None] = {}
        for digest, file in listing.claims.items():
            claim = await asyncio.to_thread(store.claim, digest)
            if claim is None or digest not in listing.candidates:
                released.append(digest)
                continue
            if claim.operation not in states:
                states[claim.operation] = await self._operations.find(claim.operation)
            state = states[claim.operation]
            if state is None:
                now = await asyncio.to_thread(self._repository.storage.now)  # its clock
                if file.time < now - SUBMIT_SECONDS:
                    released.append(digest)
            elif state.outcome is not None:
                (learnt if state.outcome.result is not None else released).append(digest)
        if learnt or released:

            def settle() -> None:
                with store.writing():
                    for digest in learnt:
                        store.retire(digest)
                    for digest in released:
                        store.release(digest)

            await readable(partial(asyncio.to_thread, settle))

    def _check(self, decisions: Sequence[Decision]) -> None:
        most = self._limits.max_images_per_upload
        if not 0 < len(decisions) <= most:
            raise InvalidInput(
                f"the request names {len(decisions)} candidates; it must name 1 to {most}",
                field="labels",
                reason="TOO_MANY_IMAGES" if decisions else None,
            )
        seen: set[str] = set()
        for place, decision in enumerate(decisions):
            if decision.digest in seen:
                raise InvalidInput(
                    f"candidate {decision.digest} is named twice", field=f"labels[{place}].digest"
                )
            seen.add(decision.digest)

    def _label(self, given: str, labels: set[str], field: str) -> str:
        label = compose_label(given, limits=self._limits, field=field)
        return label if label in labels else check_label(label, limits=self._limits, field=field)

    def _check_counts(self, chosen: dict[str, list[str]], labels: set[str]) -> None:
        least = self._limits.min_images_per_label
        for label, digests in chosen.items():
            if label not in labels and len(digests) < least:
                raise NotReady(
                    f"the new label {label!r} has {len(digests)} candidates; it needs {least}",
                    reason="TOO_FEW_CANDIDATES",
                )


def _claim(
    store: CandidateStore, claims: dict[str, Claim], discarded: list[str], *, keep: bool
) -> dict[str, str]:
    """Check all candidates, then claim and discard them; with ``keep`` only check.

    Returns the operations that learn candidates under the same label already, by image digest.
    Raises NotFound, and NotReady if an operation learns one under another label.
    """
    joined = {}
    with store.writing():
        listing = store.listing()
        for digest in [*claims, *discarded]:
            if digest not in listing.candidates and not (
                digest in listing.gone and digest not in claims
            ):
                store.read(digest)  # raises NotFound
            held = store.claim(digest) if digest in listing.claims else None
            wanted = claims.get(digest)
            if held is None or (wanted is not None and held.operation == wanted.operation):
                continue
            if wanted is None or held.label != wanted.label:
                raise NotReady(
                    f"operations/{held.operation} learns candidate {digest[:12]} as "
                    f"{held.label!r} already",
                    reason="CANDIDATE_CLAIMED",
                )
            joined[digest] = held.operation
        if not keep:
            for digest in claims.keys() - joined.keys():
                store.set_claim(digest, claims[digest])
            for digest in discarded:
                store.retire(digest)
    return joined


def _check_repeated(known: OperationState, model: str, chosen: Collection[str]) -> None:
    """Raise AlreadyExists if the request id was used for another request."""
    subject = known.subject
    if subject.model != model or (subject.label and {subject.label} != {*chosen}):
        raise AlreadyExists(
            f"request_id {known.id!r} was used for another change",
            kind="operation",
            resource=f"operations/{known.id}",
            reason="REQUEST_ID_REUSED",
        )


def _request(
    model: str,
    given: Mapping[str, str],
    known: Collection[str],
    identifier: str,
    wanted: Conditions,
) -> ChangeRequest:
    """Return the change that gives candidates their labels: by digest, ``given``."""
    labels = tuple(sorted(set(given.values())))
    several = len(labels) > 1
    kind: ChangeKind = "add_examples" if labels[0] in known else "add_class"
    return ChangeRequest(
        kind="add_classes" if several else kind,
        model=model,
        request_id=identifier,
        label="" if several else labels[0],
        labels=labels if several else (),
        gate=wanted.gate,
        expected_revision=wanted.expected_revision,
        validate_only=wanted.validate_only,
    )


async def _upload(
    store: CandidateStore, request: ChangeRequest, given: Mapping[str, str], spec: InputSpec
) -> AsyncIterator[UploadItem]:
    """Yield an upload of candidates. Raises NotFound, Corrupt, Unavailable."""
    yield request
    for digest, label in sorted(given.items()):
        content = await readable(partial(asyncio.to_thread, store.image, digest))
        name = f"review-{digest[:12]}"
        own = label if request.labels else ""
        yield [UploadedImage(name=name, content=stored_input(content, spec), label=own)]


def _release(store: CandidateStore, digests: list[str]) -> None:
    with store.writing():
        for digest in digests:
            store.release(digest)
