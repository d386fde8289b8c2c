"""Evaluations, for the asyncio client. `make proto` generates the blocking ones from this file."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable

from topwork.client import async_calls, calls
from topwork.client.images import LabelledImage
from topwork.client.results import Operation
from topwork.v1 import evaluation_pb2 as evaluation_pb
from topwork.v1 import model_service_pb2_grpc as model_grpc


class AsyncEvaluations:
    """Methods of the client that evaluate revisions and manage evaluation sets."""

    _models: model_grpc.ModelServiceAsyncStub

    async def evaluate(
        self,
        model: str,
        images: Iterable[LabelledImage] | AsyncIterable[LabelledImage] = (),
        *,
        revision: int = 0,
        compare: int = 0,
        name: str = "",
        max_drop: float | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Operation:
        """Evaluate a revision (0: the serving one) on labelled images; return the operation.

        ``Operation.evaluation()`` is its result. ``compare`` is a revision to compare it with. With
        ``name`` the images are stored as an evaluation set, or, if there are none, those of the
        stored set are used; ``max_drop``, 0 to 1, makes the set a gate. ``request_id`` is as in
        ``add_class``. Raises CallFailed, and the errors of ``images`` and their files.
        """
        config = evaluation_pb.EvaluateConfig(
            model=f"models/{model}",
            revision=revision,
            compare_revision=compare,
            evaluation_set=name,
            max_drop=max_drop,
            request_id=request_id or calls.new_request_id(),
        )
        first = evaluation_pb.EvaluateRequest(config=config)
        return Operation.of(await async_calls.upload(self._models.Evaluate, first, images, timeout))

    async def list_evaluation_sets(self, model: str) -> AsyncIterator[evaluation_pb.EvaluationSet]:
        """Yield the evaluation sets of a model, in the order of their names. Raises CallFailed."""
        request = evaluation_pb.ListEvaluationSetsRequest(model=f"models/{model}")
        async for page in async_calls.pages(self._models.ListEvaluationSets, request):
            for found in page.evaluation_sets:
                yield found

    async def get_evaluation_set(self, model: str, name: str) -> evaluation_pb.EvaluationSet:
        """Return an evaluation set. Raises CallFailed."""
        request = evaluation_pb.GetEvaluationSetRequest(
            name=f"models/{model}/evaluationSets/{name}"
        )
        return await async_calls.call_unary(self._models.GetEvaluationSet, request)

    async def delete_evaluation_set(self, model: str, name: str) -> None:
        """Delete an evaluation set with its results. Raises CallFailed."""
        request = evaluation_pb.DeleteEvaluationSetRequest(
            name=f"models/{model}/evaluationSets/{name}"
        )
        await async_calls.call_unary(self._models.DeleteEvaluationSet, request)

    async def list_evaluations(
        self, model: str, name: str = "", *, revision: int = 0
    ) -> AsyncIterator[evaluation_pb.Evaluation]:
        """Yield the stored results on an evaluation set, or on all, newest revision first.

        ``revision`` 0: of all revisions. Raises CallFailed.
        """
        request = evaluation_pb.ListEvaluationsRequest(
            model=f"models/{model}", evaluation_set=name, revision=revision
        )
        async for page in async_calls.pages(self._models.ListEvaluations, request):
            for found in page.evaluations:
                yield found

    async def get_evaluation(
        self, model: str, name: str, revision: int
    ) -> evaluation_pb.Evaluation:
        """Return the stored result of a revision on an evaluation set. Raises CallFailed."""
        request = evaluation_pb.GetEvaluationRequest(
            name=f"models/{model}/evaluationSets/{name}/evaluations/{revision}"
        )
        return await async_calls.call_unary(self._models.GetEvaluation, request)
