"""Precision and agreement of a model's backbone on the terminal and as JSON."""

from __future__ import annotations

import json

import pytest

from topwork.cli import show
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb

INT8 = revision_pb.Revision(backbone=revision_pb.Backbone(digest="a" * 64, precision="int8"))
SAME = model_pb.LoadedBackbone(digest="a" * 64, precision="int8", agreement=0.99987)
TWIN = model_pb.LoadedBackbone(digest="b" * 64, precision="fp32", agreement=0.98867)
OLD = model_pb.LoadedBackbone(digest="a" * 64, precision="int8")


@pytest.mark.parametrize(
    ("loaded", "text"),
    [
        (SAME, "int8, agreement 0.9999 on this server"),
        (TWIN, "int8, agreement 0.9887 on this server; its fp32 twin runs instead"),
        (OLD, "int8"),
        (None, "int8"),
    ],
    ids=["same", "twin", "not checked", "earlier server"],
)
def test_precision_tells_what_runs(loaded: model_pb.LoadedBackbone | None, text: str) -> None:
    """The precision of the revision comes first, then the agreement and the twin, if known."""
    assert show.precision(model_pb.Model(serving_revision=INT8, loaded_backbone=loaded)) == text


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        (TWIN, {"digest": "b" * 64, "precision": "fp32", "agreement": 0.98867}),
        (OLD, {"digest": "a" * 64, "precision": "int8", "agreement": None}),
        (None, None),
    ],
    ids=["twin", "not checked", "earlier server"],
)
def test_json_has_the_loaded_backbone(
    loaded: model_pb.LoadedBackbone | None, expected: dict[str, object] | None
) -> None:
    """What is unknown is null."""
    found = show.model_json(model_pb.Model(serving_revision=INT8, loaded_backbone=loaded))
    assert json.loads(json.dumps(found))["loaded_backbone"] == expected
    assert found["backbone"]["precision"] == "int8"
