"""Trace id of a call, from the ``traceparent`` header (W3C Trace Context)."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def trace_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the 32 hex digits of the trace, empty if the client sent no valid one.

    See https://www.w3.org/TR/trace-context; later versions may append fields.
    """
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str):
            match = _TRACEPARENT.match(value)
            return match[1] if match is not None and value[match.end() :][:1] in {"", "-"} else ""
    return ""
