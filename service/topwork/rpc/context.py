"""Type of a call's context."""

from __future__ import annotations

from typing import Any, TypeAlias

from grpc.aio import ServicerContext

Context: TypeAlias = "ServicerContext[Any, Any]"
