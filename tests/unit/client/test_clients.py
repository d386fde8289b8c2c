"""The blocking client has the methods, signatures and docstrings of the client for asyncio."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from topwork import AsyncClient, Client

DIFFERENT = {
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    " | AsyncIterable[ImageLike]": "",
    " | AsyncIterable[NamedImage]": "",
    "in the event loop": "in a thread of its own",
}


def methods(client: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods and the constructor of a client, by the blocking name."""
    return {
        name.replace("aclose", "close"): member
        for name, member in vars(client).items()
        if inspect.isfunction(member) and (not name.startswith("_") or name == "__init__")
    }


def test_clients_have_the_same_methods() -> None:
    """The methods are in the same order; ``aclose`` is ``close``."""
    assert [*methods(Client)] == [*methods(AsyncClient)]


@pytest.mark.parametrize("name", methods(Client))
def test_method_has_the_same_signature_and_docstring(name: str) -> None:
    """Only the types of iterators and of asynchronous images differ."""
    blocking, asynchronous = methods(Client)[name], methods(AsyncClient)[name]
    expected = f"{inspect.signature(asynchronous)}\n{inspect.getdoc(asynchronous)}"
    for text, other in DIFFERENT.items():
        expected = expected.replace(text, other)
    assert f"{inspect.signature(blocking)}\n{inspect.getdoc(blocking)}" == expected


@pytest.mark.parametrize("name", methods(Client))
def test_only_methods_of_the_asyncio_client_are_coroutines(name: str) -> None:
    """No method of the blocking client must be awaited."""
    blocking, asynchronous = methods(Client)[name], methods(AsyncClient)[name]
    assert not inspect.iscoroutinefunction(blocking)
    assert not inspect.isasyncgenfunction(blocking)
    if name != "__init__":
        assert inspect.iscoroutinefunction(asynchronous) or inspect.isasyncgenfunction(asynchronous)
