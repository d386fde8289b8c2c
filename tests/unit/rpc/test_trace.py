"""W3C's trace context, read from a call's metadata."""

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
def test_a_trace_is_read_if_it_is_one(value: str | bytes, found: str) -> None:
    """What is not as the standard says is no trace, and gets into no log."""
    assert trace_id([("user-agent", "x"), ("traceparent", value)]) == found


def test_most_calls_have_none() -> None:
    """No metadata, no trace."""
    assert not trace_id([])
