"""Image-classification server that adds classes while it serves, and its Python client.

The public names are the client, ``open``, which loads a model into this process, and ``batch``,
functions for data engines; these two need the extra ``cpu``. The names are imported on first use,
because the server and the trainer import this package, too. Nothing here needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topwork import batch
    from topwork.client.asynchronous import AsyncClient
    from topwork.client.blocking import Client
    from topwork.client.calls import CallFailed
    from topwork.client.credentials import Credentials
    from topwork.client.images import LabelledImage
    from topwork.client.inputs import Audio, Embedding, Text, embeddings
    from topwork.client.outcomes import progress, rejected, result
    from topwork.client.results import (
        ClassifyResult,
        EvidenceMap,
        ExplainResult,
        ImageResult,
        Neighbour,
        Operation,
        Prediction,
        StreamResult,
    )
    from topwork.local import Model
    from topwork.local import open_model as open  # noqa: A004 # topwork.open

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Audio",
    "CallFailed",
    "ClassifyResult",
    "Client",
    "Credentials",
    "Embedding",
    "EvidenceMap",
    "ExplainResult",
    "ImageResult",
    "LabelledImage",
    "Model",
    "Neighbour",
    "Operation",
    "Prediction",
    "StreamResult",
    "Text",
    "batch",
    "embeddings",
    "open",
    "progress",
    "rejected",
    "result",
]

_PLACES = {
    "AsyncClient": "client.asynchronous:AsyncClient",
    "Audio": "client.inputs:Audio",
    "CallFailed": "client.calls:CallFailed",
    "ClassifyResult": "client.results:ClassifyResult",
    "Client": "client.blocking:Client",
    "Credentials": "client.credentials:Credentials",
    "Embedding": "client.inputs:Embedding",
    "EvidenceMap": "client.results:EvidenceMap",
    "ExplainResult": "client.results:ExplainResult",
    "ImageResult": "client.results:ImageResult",
    "LabelledImage": "client.images:LabelledImage",
    "Model": "local:Model",
    "Neighbour": "client.results:Neighbour",
    "Operation": "client.results:Operation",
    "Prediction": "client.results:Prediction",
    "StreamResult": "client.results:StreamResult",
    "Text": "client.inputs:Text",
    "batch": "batch:",
    "embeddings": "client.inputs:embeddings",
    "open": "local:open_model",
    "progress": "client.outcomes:progress",
    "rejected": "client.outcomes:rejected",
    "result": "client.outcomes:result",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    imported = import_module(f"{__name__}.{module}")
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
