"""Progress, result and rejection of a change, unpacked from its operation or error."""

from __future__ import annotations

from google.longrunning import operations_pb2

from topwork.client.calls import CallFailed
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb
from topwork.v1 import revision_pb2 as revision_pb


def result(operation: operations_pb2.Operation) -> change_pb.ChangeResponse:
    """Return the result of a finished change. Raises CallFailed if it failed."""
    if operation.HasField("error"):
        raise CallFailed(operation.error)
    response = change_pb.ChangeResponse()
    if not operation.response.Unpack(response):
        raise ValueError(f"{operation.name} is not a finished change of a model")
    return response


def evaluation(operation: operations_pb2.Operation) -> evaluation_pb.Evaluation:
    """Return the result of a finished evaluation. Raises CallFailed if it failed."""
    if operation.HasField("error"):
        raise CallFailed(operation.error)
    response = evaluation_pb.Evaluation()
    if not operation.response.Unpack(response):
        raise ValueError(f"{operation.name} is not a finished evaluation")
    return response


def progress(operation: operations_pb2.Operation) -> change_pb.ChangeMetadata:
    """Return the subject and the progress of a change."""
    metadata = change_pb.ChangeMetadata()
    if not operation.metadata.Unpack(metadata):
        raise ValueError(f"{operation.name} is not a change of a model")
    return metadata


def rejected(error: CallFailed) -> revision_pb.Comparison | None:
    """Return the comparison of a change that the gate rejected; None for any other error."""
    comparison = revision_pb.Comparison()
    for detail in error.status.details:
        if detail.Unpack(comparison):
            return comparison
    return None
