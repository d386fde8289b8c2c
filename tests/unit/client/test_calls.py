"""Clients show what a newer server says, as far as they know it."""

from __future__ import annotations

from google.rpc import status_pb2

from topwork.cli import show_change
from topwork.client.calls import CallFailed
from topwork.v1 import change_pb2 as change_pb


def test_a_code_that_is_not_known_is_unknown() -> None:
    """The message is kept."""
    error = CallFailed(status_pb2.Status(code=77, message="too blue"))
    assert (error.code, str(error)) == ("UNKNOWN", "too blue")


def test_a_kind_and_a_stage_that_are_not_known_are_shown_by_number() -> None:
    """Those that are known are shown by name."""
    newer = change_pb.ChangeMetadata(kind=change_pb.CHANGE_KIND_RETRAIN)
    assert show_change.kind(newer) == "retrain"
    newer.kind = newer.stage = 77  # type: ignore[assignment]  # as a newer server sends it
    assert (show_change.kind(newer), show_change.stage(newer)) == ("77", "77")
