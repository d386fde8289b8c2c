"""What an operation of a change says: how far it is, what came of it, or why not."""

from __future__ import annotations

from google.longrunning import operations_pb2

from topwork.client.calls import CallFailed
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import revision_pb2 as revision_pb


def result(operation: operations_pb2.Operation) -> change_pb.ChangeResponse:
    """Return what a finished change gave. Raises CallFailed if it failed."""
    if operation.HasField("error"):
        raise CallFailed(operation.error)
    response = change_pb.ChangeResponse()
    if not operation.response.Unpack(response):
        raise ValueError(f"{operation.name} is not a finished change of a model")
    return response


def progress(operation: operations_pb2.Operation) -> change_pb.ChangeMetadata:
    """Return what a change is about, and how far it is."""
    metadata = change_pb.ChangeMetadata()
    if not operation.metadata.Unpack(metadata):
        raise ValueError(f"{operation.name} is not a change of a model")
    return metadata


def rejected(error: CallFailed) -> revision_pb.Comparison | None:
    """Return the numbers for which a gate rejected a change; None if it failed otherwise."""
    comparison = revision_pb.Comparison()
    for detail in error.status.details:
        if detail.Unpack(comparison):
            return comparison
    return None
