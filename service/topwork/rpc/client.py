"""The former place of the Python client, which is ``topwork`` now."""

from __future__ import annotations

import warnings

from topwork.client.asynchronous import AsyncClient
from topwork.client.blocking import Client
from topwork.client.calls import CallFailed
from topwork.client.credentials import Credentials
from topwork.client.outcomes import progress, rejected, result
from topwork.client.results import StreamResult

__all__ = [
    "AsyncClient",
    "CallFailed",
    "Client",
    "Credentials",
    "StreamResult",
    "progress",
    "rejected",
    "result",
]

warnings.warn(
    "topwork.rpc.client is deprecated: import from topwork", DeprecationWarning, stacklevel=2
)
