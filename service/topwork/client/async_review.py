"""Review queue, for the asyncio client. `make proto` generates the blocking one from this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from topwork.client import async_calls, calls
from topwork.client.results import Operation
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import review_service_pb2 as review_pb
from topwork.v1 import review_service_pb2_grpc as review_grpc


class AsyncReview:
    """Methods of the client that show and label the candidates of a review queue."""

    _review: review_grpc.ReviewServiceAsyncStub

    async def review_policy(self, model: str) -> review_pb.ReviewPolicy:
        """Return what the review queue of a model keeps, and has kept. Raises CallFailed."""
        request = review_pb.GetReviewPolicyRequest(name=f"models/{model}/reviewPolicy")
        return await async_calls.call_unary(self._review.GetReviewPolicy, request)

    async def update_review_policy(
        self, model: str, policy: review_pb.ReviewPolicy
    ) -> review_pb.ReviewPolicy:
        """Change the fields of a policy that ``policy`` sets, and return it. Raises CallFailed."""
        request = review_pb.UpdateReviewPolicyRequest(policy=policy)
        request.policy.name = f"models/{model}/reviewPolicy"
        return await async_calls.call_unary(self._review.UpdateReviewPolicy, request)

    async def list_candidates(
        self, model: str, wanted: str = "", *, previews: bool = False
    ) -> AsyncIterator[review_pb.Candidate]:
        """Yield the candidates of a model that match the filter ``wanted``, the most useful first.

        A filter is such as ``reason = unknown AND group = "3f9a12c4d5e6"``. Raises CallFailed.
        """
        request = review_pb.ListCandidatesRequest(
            model=f"models/{model}",
            filter=wanted,
            view=review_pb.CANDIDATE_VIEW_PREVIEW if previews else review_pb.CANDIDATE_VIEW_BASIC,
        )
        async for page in async_calls.pages(self._review.ListCandidates, request):
            for candidate in page.candidates:
                yield candidate

    async def get_candidate(self, model: str, digest: str) -> review_pb.Candidate:
        """Return a candidate with its image. Raises CallFailed."""
        request = review_pb.GetCandidateRequest(name=f"models/{model}/candidates/{digest}")
        return await async_calls.call_unary(self._review.GetCandidate, request)

    async def candidate_groups(
        self, model: str, *, examples: int = 0
    ) -> list[review_pb.CandidateGroup]:
        """Return the groups of candidates that look alike and like no label. Raises CallFailed.

        Each has the ``examples`` most typical candidates, 0: five.
        """
        request = review_pb.ListCandidateGroupsRequest(model=f"models/{model}", examples=examples)
        response = await async_calls.call_unary(self._review.ListCandidateGroups, request)
        return list(response.groups)

    async def label_candidates(
        self,
        model: str,
        labels: Mapping[str, str | None],
        *,
        request_id: str = "",
        options: change_pb.ChangeOptions | None = None,
        timeout: float | None = None,
    ) -> list[Operation]:
        """Label candidates by their digests, None: discard; return the operations that learn them.

        There is one operation for all labels, and maybe earlier ones that learn candidates under
        the same label already. Raises CallFailed.
        """
        request = review_pb.LabelCandidatesRequest(
            model=f"models/{model}",
            labels=[
                review_pb.CandidateLabel(digest=digest, discard=True)
                if label is None
                else review_pb.CandidateLabel(digest=digest, label=label)
                for digest, label in labels.items()
            ],
            request_id=request_id or calls.new_request_id(),
            options=options,
        )
        response = await async_calls.call_unary(self._review.LabelCandidates, request, timeout)
        return [Operation.of(operation) for operation in response.operations]

    async def correct_answer(self, model: str, answer_id: str, label: str) -> review_pb.Candidate:
        """Say that ``label`` is right instead of an answer (``ImageResult.answer_id``).

        The image becomes a candidate; ``label_candidates`` teaches it. Raises CallFailed.
        """
        request = review_pb.CorrectAnswerRequest(
            model=f"models/{model}", answer_id=answer_id, label=label
        )
        return await async_calls.call_unary(self._review.CorrectAnswer, request)
