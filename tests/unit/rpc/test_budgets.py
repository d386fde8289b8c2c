"""Time budget of a call's images, from its deadline and the server's limit, and its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from support.infers import request
from support.pictures import picture

from topwork.access.principals import Caller, set_caller, unrestricted
from topwork.bundle.store import Repository
from topwork.errors import DeadlinePassed
from topwork.limits import DEFAULT_LIMITS
from topwork.rpc.context import Context
from topwork.rpc.open_inference.servicer import OpenInferenceServicer
from topwork.rpc.servicers.classifier import ClassifierServicer
from topwork.serving.classifier import Classifier
from topwork.serving.explanation.explainer import Explainer
from topwork.serving.registry import Registry
from topwork.v1 import classifier_service_pb2 as classify_pb

MOST = 60.0


class BudgetRecorder:
    """A classifier that records budget and caller, and times out; a context with a deadline."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining
        self.budgets: list[float] = []
        self.callers: list[str] = []

    async def classify(self, *_: Any, budget: float, caller: str, **__: Any) -> None:
        """Note the budget and the caller."""
        self.budgets.append(budget)
        self.callers.append(caller)
        raise DeadlinePassed("it is over")

    infer = classify

    def time_remaining(self) -> float | None:
        """See ServicerContext."""
        return self._remaining


PEER = "ipv4:10.0.0.7:4711"


async def call(
    method: Callable[[Any, Context], Awaitable[object]], message: object, asked: BudgetRecorder
) -> None:
    """Call a method as the interceptor does, for an anonymous caller."""
    anybody = unrestricted()
    set_caller(Caller(anybody, "classify", PEER, lambda: anybody))
    await method(message, cast("Context", asked))


BUDGETS = pytest.mark.parametrize(
    ("remaining", "budget"), [(None, MOST), (5.0, 5.0), (3600.0, MOST), (0.0, 0.0)]
)


@BUDGETS
def test_classify_budget_is_the_remaining_deadline(remaining: float | None, budget: float) -> None:
    """The budget is the remaining time, or the server's limit if that is less."""
    asked = BudgetRecorder(remaining)
    servicer = ClassifierServicer(
        cast("Classifier", asked), cast("Explainer", None), most_seconds=MOST
    )
    message = classify_pb.ClassifyRequest(model="models/x", images=[b""])
    with pytest.raises(DeadlinePassed):
        asyncio.run(call(servicer.Classify, message, asked))
    assert asked.budgets == [budget]
    assert asked.callers == [PEER]


@BUDGETS
@pytest.mark.parametrize("timeout", [None, 2.0, 100.0])
def test_model_infer_budget_is_the_shortest_limit(
    remaining: float | None, budget: float, timeout: float | None
) -> None:
    """The parameter ``timeout`` counts beside the deadline and the server's limit."""
    asked = BudgetRecorder(remaining)
    servicer = OpenInferenceServicer(
        Repository(Path("repository")),
        cast("Registry", None),
        cast("Classifier", asked),
        limits=DEFAULT_LIMITS,
        most_seconds=MOST,
        ready=lambda: True,
    )
    message = request([picture("blue", 1)])
    if timeout is not None:
        message.parameters["timeout"].int64_param = round(timeout * 1e6)
    with pytest.raises(DeadlinePassed):
        asyncio.run(call(servicer.ModelInfer, message, asked))
    assert asked.budgets == [budget if timeout is None else min(budget, timeout)]
    assert asked.callers == [PEER]
