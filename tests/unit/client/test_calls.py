"""Codes, kinds and stages of a newer server, which this client does not know."""

from __future__ import annotations

from google.rpc import status_pb2

from topwork.cli import show_change
from topwork.client.calls import CallFailed
from topwork.v1 import change_pb2 as change_pb


def test_call_failed_of_an_unrecognised_code_is_unknown() -> None:
    """The error has the message."""
    error = CallFailed(status_pb2.Status(code=77, message="too blue"))
    assert (error.code, str(error)) == ("UNKNOWN", "too blue")


def test_unrecognised_kind_and_stage_are_shown_by_number() -> None:
    """Recognised values are shown by name."""
    newer = change_pb.ChangeMetadata(kind=change_pb.CHANGE_KIND_RETRAIN)
    assert show_change.kind(newer) == "retrain"
    newer.kind = newer.stage = 77  # type: ignore[assignment]  # as a newer server sends it
    assert (show_change.kind(newer), show_change.stage(newer)) == ("77", "77")
