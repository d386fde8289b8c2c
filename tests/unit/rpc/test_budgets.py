"""The time that a call has left is what its images have."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from support.infers import request
from support.pictures import picture

from topwork.bundle.store import Repository
from topwork.errors import DeadlinePassed
from topwork.limits import DEFAULT_LIMITS
from topwork.rpc.context import Context
from topwork.rpc.open_inference.servicer import OpenInferenceServicer
from topwork.rpc.servicers.classifier import ClassifierServicer
from topwork.serving.classifier import Classifier
from topwork.serving.registry import Registry
from topwork.v1 import classifier_service_pb2 as classify_pb

MOST = 60.0


class Asked:
    """A classifier whose time is always over, and a call with so much time left."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining
        self.budgets: list[float] = []

    async def classify(self, *_: Any, budget: float, **__: Any) -> None:
        """Note the budget."""
        self.budgets.append(budget)
        raise DeadlinePassed("it is over")

    infer = classify

    def time_remaining(self) -> float | None:
        """See ServicerContext."""
        return self._remaining


BUDGETS = pytest.mark.parametrize(
    ("remaining", "budget"), [(None, MOST), (5.0, 5.0), (3600.0, MOST), (0.0, 0.0)]
)


@BUDGETS
def test_classify_has_what_is_left_of_the_call(remaining: float | None, budget: float) -> None:
    """At most the server's own limit, which counts where the client gave no deadline."""
    asked = Asked(remaining)
    servicer = ClassifierServicer(cast("Classifier", asked), most_seconds=MOST)
    message = classify_pb.ClassifyRequest(model="models/x", images=[b""])
    with pytest.raises(DeadlinePassed):
        asyncio.run(servicer.Classify(message, cast("Context", asked)))
    assert asked.budgets == [budget]


@BUDGETS
@pytest.mark.parametrize("timeout", [None, 2.0, 100.0])
def test_model_infer_has_the_least_of_what_was_given(
    remaining: float | None, budget: float, timeout: float | None
) -> None:
    """The same, and the protocol's own parameter counts beside the call's deadline."""
    asked = Asked(remaining)
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
        asyncio.run(servicer.ModelInfer(message, cast("Context", asked)))
    assert asked.budgets == [budget if timeout is None else min(budget, timeout)]
