"""Evaluation sets and results of models, as messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from topwork.bundle.evaluation import EvaluationResult
from topwork.bundle.evaluation_sets import EvaluationSet, EvaluationSets
from topwork.bundle.store import Repository
from topwork.errors import NotFound, Unavailable
from topwork.rpc.convert import fields
from topwork.rpc.convert.evaluations import to_evaluation, to_evaluation_set
from topwork.rpc.servicers.pages import Page, page_range
from topwork.v1 import evaluation_pb2 as evaluation_pb


class EvaluationViews:
    """Reads and deletes the evaluation sets of models for a servicer.

    Its methods raise InvalidInput, NotFound and Corrupt.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def sets(
        self, request: evaluation_pb.ListEvaluationSetsRequest
    ) -> evaluation_pb.ListEvaluationSetsResponse:
        """Return a page of a model's evaluation sets."""
        start, size = page_range(request.page_size, request.page_token)
        sets = self._sets(fields.model_id(request.model, field="model"))

        def read() -> Page[evaluation_pb.EvaluationSet]:
            page = Page[evaluation_pb.EvaluationSet](start, size)
            for stored in sets.readable()[start:]:
                if not page.add(self._message(stored)):
                    break
            return page

        page = await asyncio.to_thread(read)
        return evaluation_pb.ListEvaluationSetsResponse(
            evaluation_sets=page.messages, next_page_token=page.token
        )

    async def set(
        self, request: evaluation_pb.GetEvaluationSetRequest
    ) -> evaluation_pb.EvaluationSet:
        """Return an evaluation set."""
        model, name = fields.evaluation_set_ids(request.name)
        sets = self._sets(model)
        return await asyncio.to_thread(lambda: self._message(sets.get(name)))

    async def delete(self, request: evaluation_pb.DeleteEvaluationSetRequest) -> None:
        """Delete an evaluation set. Raises Unavailable if that is impossible now."""
        model, name = fields.evaluation_set_ids(request.name)
        try:
            await asyncio.to_thread(self._sets(model).delete, name)
        except OSError as error:
            text = f"the evaluation set {name!r} cannot be deleted: {error.strerror}"
            raise Unavailable(text, reason="STORAGE") from error

    async def evaluations(
        self, request: evaluation_pb.ListEvaluationsRequest
    ) -> evaluation_pb.ListEvaluationsResponse:
        """Return a page of the stored results of a model."""
        start, size = page_range(request.page_size, request.page_token)
        sets = self._sets(fields.model_id(request.model, field="model"))
        revision = fields.number(request.revision, field="revision")

        def read() -> Page[evaluation_pb.Evaluation]:
            page = Page[evaluation_pb.Evaluation](start, size)
            for result in [*_results(sets, request.evaluation_set, revision)][start:]:
                if not page.add(to_evaluation(result)):
                    break
            return page

        page = await asyncio.to_thread(read)
        return evaluation_pb.ListEvaluationsResponse(
            evaluations=page.messages, next_page_token=page.token
        )

    async def evaluation(
        self, request: evaluation_pb.GetEvaluationRequest
    ) -> evaluation_pb.Evaluation:
        """Return the result of a revision on an evaluation set."""
        model, name, revision = fields.evaluation_ids(request.name)
        return to_evaluation(await asyncio.to_thread(self._sets(model).result, name, revision))

    def _sets(self, model: str) -> EvaluationSets:
        if model not in self._repository.model_names():
            raise NotFound(f"there is no model 'models/{model}'", kind="model", resource=model)
        return EvaluationSets(self._repository, model)

    def _message(self, stored: EvaluationSet) -> evaluation_pb.EvaluationSet:
        kept = self._repository.stored_images([image.content for image in stored.images])
        return to_evaluation_set(stored, sum(image.content in kept for image in stored.images))


def _results(sets: EvaluationSets, name: str, revision: int) -> Iterator[EvaluationResult]:
    """Yield stored results, of one set or all, of one revision or all."""
    for each in [name] if name else sets.names():
        # A set may be deleted while the others are read.
        with contextlib.suppress(*([] if name else [NotFound])):
            for result in sets.results(each):
                if revision in {0, result.revision}:
                    yield result
