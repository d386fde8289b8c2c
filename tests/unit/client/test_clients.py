"""The blocking client has the methods, signatures and docstrings of the one for asyncio."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from topwork import AsyncClient, Client

DIFFERENT = {
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    " | AsyncIterable[Image]": "",
    " | AsyncIterable[NamedImage]": "",
    "in the event loop": "in a thread of its own",
}


def methods(client: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods of a client, and how it is made."""
    found = {name: one for name, one in vars(client).items() if inspect.isfunction(one)}
    return {
        name.replace("aclose", "close"): one
        for name, one in found.items()
        if not name.startswith("_") or name == "__init__"
    }


def test_clients_have_the_same_methods() -> None:
    """Except that ``aclose`` is ``close``, in the same order."""
    assert [*methods(Client)] == [*methods(AsyncClient)]


@pytest.mark.parametrize("name", methods(Client))
def test_method_has_the_same_signature_and_docstring(name: str) -> None:
    """Iterators are such of their kind, and only images may come asynchronously."""
    blocking, asynchronous = methods(Client)[name], methods(AsyncClient)[name]
    wanted = f"{inspect.signature(asynchronous)}\n{inspect.getdoc(asynchronous)}"
    for text, other in DIFFERENT.items():
        wanted = wanted.replace(text, other)
    assert f"{inspect.signature(blocking)}\n{inspect.getdoc(blocking)}" == wanted


@pytest.mark.parametrize("name", methods(Client))
def test_only_methods_of_asyncio_are_coroutines(name: str) -> None:
    """No method of the blocking client returns what must be awaited."""
    blocking, asynchronous = methods(Client)[name], methods(AsyncClient)[name]
    assert not inspect.iscoroutinefunction(blocking)
    assert not inspect.isasyncgenfunction(blocking)
    if name != "__init__":
        assert inspect.iscoroutinefunction(asynchronous) or inspect.isasyncgenfunction(asynchronous)
