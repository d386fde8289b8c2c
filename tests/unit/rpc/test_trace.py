"""Trace id of a call (W3C Trace Context)."""

from __future__ import annotations

import pytest

from topwork.rpc.trace import trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-brings", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-00f067aa0ba902b7-01x", ""),
        ("", ""),
        (b"00", ""),
    ],
)
def test_only_valid_traceparent_has_a_trace_id(value: str | bytes, found: str) -> None:
    """A malformed ``traceparent`` gives no trace id, and nothing of it is logged."""
    assert trace_id([("user-agent", "x"), ("traceparent", value)]) == found


def test_call_without_traceparent_has_no_trace_id() -> None:
    """No metadata, no trace."""
    assert not trace_id([])
