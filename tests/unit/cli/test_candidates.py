"""Suggestions of existing names in "not found" errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import click
import pytest

from topwork import CallFailed, Client
from topwork.cli.candidates import FEW, suggest_names
from topwork.errors import Forbidden, NotFound, TopworkError
from topwork.v1 import model_service_pb2 as model_pb
from topwork.wire import status


class ListingClient:
    """Fake client that lists models, or refuses if there are none."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def models(self) -> Iterator[model_pb.Model]:
        """Yield the models."""
        if not self._names:
            raise CallFailed(status.from_error(Forbidden("role missing")))
        for name in self._names:
            yield model_pb.Model(name=f"models/{name}")


def message(error: TopworkError, names: Sequence[str]) -> str:
    """Return the message of an error for a caller who may see the models ``names``."""
    with (
        click.Context(click.Command("describe")),
        pytest.raises(CallFailed) as caught,
        suggest_names(cast("Client", ListingClient(names))),
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
def test_message_suggests_visible_names(names: Sequence[str], end: str) -> None:
    """The message has close names, or all if they are few, and no name if none is visible."""
    assert message(MISSING, names) == f"there is no model 'x'{end}"


def test_other_errors_suggest_nothing() -> None:
    """Only NOT_FOUND gets suggestions."""
    assert message(Forbidden("no"), ["flowers"]) == "no"
