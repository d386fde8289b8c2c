"""Image-classification server that adds classes while it serves, and its Python client.

The public names are the client. They are imported on first use, because the server and the trainer
import this package, too. Nothing here needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topwork.client.asynchronous import AsyncClient
    from topwork.client.blocking import Client
    from topwork.client.calls import CallFailed
    from topwork.client.credentials import Credentials
    from topwork.client.outcomes import progress, rejected, result
    from topwork.client.results import (
        ClassifyResult,
        ImageResult,
        Operation,
        Prediction,
        StreamResult,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "CallFailed",
    "ClassifyResult",
    "Client",
    "Credentials",
    "ImageResult",
    "Operation",
    "Prediction",
    "StreamResult",
    "progress",
    "rejected",
    "result",
]

_MODULES = {
    "AsyncClient": "asynchronous",
    "CallFailed": "calls",
    "ClassifyResult": "results",
    "Client": "blocking",
    "Credentials": "credentials",
    "ImageResult": "results",
    "Operation": "results",
    "Prediction": "results",
    "StreamResult": "results",
    "progress": "outcomes",
    "rejected": "outcomes",
    "result": "outcomes",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"topwork.client.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
