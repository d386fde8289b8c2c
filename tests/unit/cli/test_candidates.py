"""Names that may have been meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import click
import pytest

from topwork import CallFailed, Client
from topwork.cli.candidates import FEW, naming_candidates
from topwork.errors import Forbidden, NotFound, TopworkError
from topwork.v1 import model_service_pb2 as model_pb
from topwork.wire import status


class Seeing:
    """A client whose caller may see some models."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def models(self) -> Iterator[model_pb.Model]:
        """Yield them."""
        if not self._names:
            raise CallFailed(status.from_error(Forbidden("not you")))
        for name in self._names:
            yield model_pb.Model(name=f"models/{name}")


def told(error: TopworkError, names: Sequence[str]) -> str:
    """Return the message of an error that a caller gets who may see models of these names."""
    with (
        click.Context(click.Command("describe")),
        pytest.raises(CallFailed) as caught,
        naming_candidates(cast("Client", Seeing(names))),
    ):
        raise CallFailed(status.from_error(error))
    return str(caught.value)


MISSING = NotFound("there is no model 'x'", kind="model", resource="models/flowerz")


@pytest.mark.parametrize(
    ("names", "end"),
    [
        (["birds", "flowers", "fruit"], "; close to it: flowers"),
        (["a", "b"], "; there are: a, b"),
        ([str(n) for n in range(FEW + 1)], ""),
        ([], ""),
    ],
)
def test_only_names_that_the_caller_may_see_are_told(names: Sequence[str], end: str) -> None:
    """Close ones, or all if they are few; none where the caller may see none."""
    assert told(MISSING, names) == f"there is no model 'x'{end}"


def test_another_error_stays_as_it_is() -> None:
    """What is not about a missing name has no names added."""
    assert told(Forbidden("no"), ["flowers"]) == "no"
