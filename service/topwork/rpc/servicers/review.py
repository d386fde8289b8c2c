"""Servicer of topwork.v1.ReviewService."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from functools import partial

from topwork.bundle.candidates import CandidateStore
from topwork.bundle.manifest import Manifest
from topwork.bundle.names import check_label, compose_label
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.limits import ServerLimits
from topwork.review.answers import RecentAnswers
from topwork.review.candidates import Candidates, readable
from topwork.review.capture import Capture
from topwork.review.labelling import Labelling
from topwork.review.queue_index import QueueIndex
from topwork.review.writer import correct
from topwork.rpc import filters
from topwork.rpc.context import Context
from topwork.rpc.convert import fields
from topwork.rpc.convert.review import (
    from_labels,
    from_options,
    from_policy,
    policy_model,
    to_candidate,
    to_group,
    to_policy,
)
from topwork.rpc.servicers.operations import OperationViews
from topwork.rpc.servicers.pages import Page, page_range
from topwork.serving.registry import Registry
from topwork.v1 import review_service_pb2 as review_pb
from topwork.v1 import review_service_pb2_grpc as review_grpc

_TOKEN = re.compile(r"([0-9]{1,9})\.([0-9a-f]{16})", re.ASCII)

DEFAULT_EXAMPLES = 5
MOST_EXAMPLES = 50


class ReviewServicer(review_grpc.ReviewServiceServicer):
    """topwork.v1.ReviewService."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        views: OperationViews,
        candidates: Candidates,
        capture: Capture,
        answers: RecentAnswers,
        labelling: Labelling,
        limits: ServerLimits,
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._views = views
        self._candidates = candidates
        self._capture = capture
        self._answers = answers
        self._labelling = labelling
        self._limits = limits

    async def GetReviewPolicy(
        self, request: review_pb.GetReviewPolicyRequest, context: Context
    ) -> review_pb.ReviewPolicy:
        """See the contract."""
        model = policy_model(request.name, field="name")
        self._registry.serving(model)
        await self._labelling.settle(model)
        return await readable(partial(asyncio.to_thread, self._policy_message, model))

    async def UpdateReviewPolicy(
        self, request: review_pb.UpdateReviewPolicyRequest, context: Context
    ) -> review_pb.ReviewPolicy:
        """See the contract."""
        model = policy_model(request.policy.name, field="policy.name")
        self._registry.serving(model)

        def update() -> review_pb.ReviewPolicy:
            with self._repository.locked(model):
                policy = from_policy(request.policy, self._repository.review_policy(model))
                self._repository.set_review_policy(model, policy)
            self._capture.refresh(model)
            return self._policy_message(model)

        return await readable(partial(asyncio.to_thread, update))

    async def ListCandidates(
        self, request: review_pb.ListCandidatesRequest, context: Context
    ) -> review_pb.ListCandidatesResponse:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        wanted = filters.parse_candidates(request.filter)
        stamp = hashlib.sha256(f"{model}\0{request.filter}".encode()).hexdigest()[:16]
        token = _TOKEN.fullmatch(request.page_token)
        if request.page_token and (token is None or token[2] != stamp):
            raise InvalidInput(
                f"page_token {request.page_token[:80]!r} was not given for this list",
                field="page_token",
            )
        start, size = page_range(request.page_size, token[1] if token is not None else "")
        manifest, policy = await self._serving(model)
        queue = await self._candidates.queue(model)
        rows = [row for row in queue.rows if wanted.has(row)]
        page = Page[review_pb.Candidate](start, size)
        preview = request.view == review_pb.CANDIDATE_VIEW_PREVIEW
        for row in rows[start : start + size]:
            if not page.add(to_candidate(manifest, row, policy, preview=preview)):
                break
        after = start + len(page.messages)
        return review_pb.ListCandidatesResponse(
            candidates=page.messages,
            next_page_token=f"{after}.{stamp}" if after < len(rows) else "",
            total_size=len(rows),
        )

    async def GetCandidate(
        self, request: review_pb.GetCandidateRequest, context: Context
    ) -> review_pb.Candidate:
        """See the contract."""
        model, digest = fields.example_ids(request.name, collection="candidates")
        return await self._candidate(model, digest)

    async def ListCandidateGroups(
        self, request: review_pb.ListCandidateGroupsRequest, context: Context
    ) -> review_pb.ListCandidateGroupsResponse:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        if request.examples < 0:
            raise InvalidInput(
                f"examples is {request.examples}; it must not be negative", field="examples"
            )
        manifest, policy = await self._serving(model)
        queue = await self._candidates.queue(model)
        examples = min(request.examples or DEFAULT_EXAMPLES, MOST_EXAMPLES)
        return review_pb.ListCandidateGroupsResponse(
            groups=[to_group(manifest, group, policy, examples=examples) for group in queue.groups],
            compared=queue.compared,
        )

    async def LabelCandidates(
        self, request: review_pb.LabelCandidatesRequest, context: Context
    ) -> review_pb.LabelCandidatesResponse:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        labelled = await self._labelling.label(
            model,
            from_labels(request.labels),
            request.request_id,
            from_options(request.options),
        )
        return review_pb.LabelCandidatesResponse(
            operations=[await self._views.message(operation) for operation in labelled.operations],
            discarded=labelled.discarded,
        )

    async def CorrectAnswer(
        self, request: review_pb.CorrectAnswerRequest, context: Context
    ) -> review_pb.Candidate:
        """See the contract."""
        model = fields.model_id(request.model, field="model")
        manifest = self._registry.serving(model)
        label = compose_label(request.label, limits=self._limits)
        if label not in manifest.labels:
            label = check_label(request.label, limits=self._limits)
        offer = self._answers.get(model, request.answer_id)

        def keep() -> str:
            policy = self._repository.review_policy(model)
            return correct(self._repository, offer, label, policy, self._limits).digest

        digest = await readable(partial(asyncio.to_thread, keep))
        return await self._candidate(model, digest)

    async def _candidate(self, model: str, digest: str) -> review_pb.Candidate:
        manifest, policy = await self._serving(model)
        store = CandidateStore(self._repository, model)
        image = await readable(partial(asyncio.to_thread, store.image, digest))
        queue = await self._candidates.queue(model)
        row = next((row for row in queue.rows if row.candidate.digest == digest), None)
        if row is None:
            await readable(partial(asyncio.to_thread, store.read, digest))  # raises NotFound
            raise AssertionError("a readable candidate is in the queue; this is a bug")
        return to_candidate(manifest, row, policy, preview=True, image=image)

    async def _serving(self, model: str) -> tuple[Manifest, ReviewPolicy]:
        """Return the serving revision and the policy, after the claims of ended operations."""
        manifest = self._registry.serving(model)
        await self._labelling.settle(model)
        read = partial(asyncio.to_thread, self._repository.review_policy, model)
        return manifest, await readable(read)

    def _policy_message(self, model: str) -> review_pb.ReviewPolicy:
        index = QueueIndex(CandidateStore(self._repository, model))
        index.refresh()
        kept = index.kept(time.time())
        policy = self._repository.review_policy(model)
        return to_policy(model, policy, index.listing, kept.useful + kept.random)
