"""Suggestions of existing names in "not found" errors of models, labels and revisions."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import click
from google.rpc import error_details_pb2

from topwork import CallFailed, Client

FEW = 5
"""Existing names up to which all are suggested if no name is close to the wrong one."""


@contextmanager
def suggest_names(client: Client) -> Iterator[None]:
    """Add similar names that the caller may see to a CallFailed with NOT_FOUND."""
    try:
        yield
    except CallFailed as error:
        missing = error_details_pb2.ResourceInfo()
        if error.code == "NOT_FOUND" and any(
            detail.Unpack(missing) for detail in error.status.details
        ):
            error.status.message += _candidates(client, missing)
            raise CallFailed(error.status) from error
        raise


def _candidates(client: Client, missing: error_details_pb2.ResourceInfo) -> str:
    model_name = click.get_current_context().params.get("model", "")
    name = missing.resource_name
    try:
        match missing.resource_type.rpartition("/")[2]:
            case "model":
                name = name.removeprefix("models/")
                known = [model.name.removeprefix("models/") for model in client.models()]
            case "label":
                known = list(client.model(model_name).serving_revision.labels)
            case "revision":
                name = name.rpartition("/")[2]
                known = [str(revision) for revision in client.model(model_name).revisions]
            case _:
                return ""
    except CallFailed:  # the caller gets the first error
        return ""
    if close := difflib.get_close_matches(name, known):
        return f"; close to it: {', '.join(close)}"
    return f"; there are: {', '.join(known)}" if 0 < len(known) <= FEW else ""
