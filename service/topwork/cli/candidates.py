"""Names that may have been meant where a model, label or revision is not found."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import click
from google.rpc import error_details_pb2

from topwork import CallFailed, Client

FEW = 5
"""Names that are all shown where none is close to the one that was given."""


@contextmanager
def naming_candidates(client: Client) -> Iterator[None]:
    """Add to a CallFailed about a name that is not there the names that the caller may see."""
    try:
        yield
    except CallFailed as error:
        missing = error_details_pb2.ResourceInfo()
        if error.code == "NOT_FOUND" and any(one.Unpack(missing) for one in error.status.details):
            error.status.message += _candidates(client, missing)
            raise CallFailed(error.status) from error
        raise


def _candidates(client: Client, missing: error_details_pb2.ResourceInfo) -> str:
    model = click.get_current_context().params.get("model", "")
    name = missing.resource_name
    try:
        match missing.resource_type.rpartition("/")[2]:
            case "model":
                name = name.removeprefix("models/")
                known = [one.name.removeprefix("models/") for one in client.models()]
            case "label":
                known = list(client.model(model).serving_revision.labels)
            case "revision":
                name = name.rpartition("/")[2]
                known = [str(one) for one in client.model(model).revisions]
            case _:
                return ""
    except CallFailed:  # the first error matters
        return ""
    if close := difflib.get_close_matches(name, known):
        return f"; close to it: {', '.join(close)}"
    return f"; there are: {', '.join(known)}" if 0 < len(known) <= FEW else ""
