"""Manifest: JSON round trip, and refusal of invalid documents."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from topwork.bundle.comparison import (
    Comparison,
    ConfusedLabels,
    Gate,
    LabelChange,
    Rejection,
    TaughtLabel,
)
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.manifest import (
    BackboneInfo,
    ChosenHead,
    Manifest,
    PrecisionGate,
    ShardRef,
)
from topwork.bundle.metrics import Metrics, evaluate
from topwork.bundle.recipe import Recipe
from topwork.errors import Corrupt
from topwork.inputs.preprocess import PreprocessSpec

A, B = "a" * 64, "0123456789abcdef" * 4
BACKBONE = BackboneInfo(
    name="efficientnet_lite0",
    identity="efficientnet_lite0:224:fp32",
    digest=A,
    preprocess=PreprocessSpec(
        resize=256, crop=224, interpolation="bilinear", deep_grey="percentiles"
    ),
    width=1280,
    precision="int8",
    licence="Apache-2.0",
    source="PyPI",
    weights_digest=B,
    parity_error=1.25e-6,
    versions={"torch": "2.13"},
)
MANIFEST = Manifest(
    model="flowers",
    revision=2,
    parent=1,
    labels=("daisy", "雛菊", 'a "quoted" one'),
    backbone=A,
    backbone_info=B,
    head=B,
    metrics=A,
    report=B,
    exemplars=(ShardRef(label="daisy", digest=A), ShardRef(label="雛菊", digest=B)),
    data_digest=A,
    images=2_000,
    seed=-3,
    recipe=Recipe(head="auto", normalisation="l2"),
    chosen=ChosenHead(
        kind="ridge",
        normalisation="l2",
        strength=10.0,
        temperature=1 / 3,
        unknown_threshold=0.75,
    ),
    precision_gate=PrecisionGate(
        taken=True, loss_points=0.25, loss_low=-0.5, loss_high=1.0, speed_ratio=2.0, why="fast"
    ),
    change="add_class",
    operation="operations/7",
    comparison=Comparison(
        images=1_900,
        accuracy_before=0.95,
        accuracy_after=0.94,
        drop=0.01,
        drop_low=-1 / 3,
        drop_high=0.02,
        ece_before=0.01,
        ece_after=0.02,
        labels=(
            LabelChange(
                label="daisy", images=900, recall_before=1.0, recall_after=0.9, lost=90, gained=0
            ),
        ),
        taught=TaughtLabel(label="雛菊", images=100, recall=0.5, low=0.4, high=0.6),
        confusions=(ConfusedLabels(label="雛菊", called="daisy", images=50, share=0.5),),
    ),
    rejection=Rejection(gate=Gate(max_conflicts=3), failures=("recall 0.5 is below 0.6",)),
    created=datetime(2026, 11, 23, 21, 3, 4, 567_890, tzinfo=UTC),
    versions={"topwork": "0.1.0"},
)
METRICS = evaluate(
    np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), ("a", "b"), folds=5
)


@pytest.mark.parametrize(
    "value", [MANIFEST, BACKBONE, METRICS], ids=["manifest", "info", "metrics"]
)
def test_json_round_trip(value: Manifest | BackboneInfo | Metrics) -> None:
    """Each document decodes to an equal value."""
    assert from_json(to_json(value), type(value), name="it") == value


def test_manifest_is_indented_json_in_field_order() -> None:
    """A manifest is JSON that people and other programs can read."""
    assert list(json.loads(to_json(MANIFEST)))[:4] == ["model", "revision", "parent", "labels"]
    assert to_json(MANIFEST).count(b"\n") > 15


def changed(path: str, value: Any) -> bytes:
    """Return the JSON of MANIFEST or BACKBONE with one field changed, or deleted if ``...``."""
    kind = BACKBONE if path.startswith(("preprocess", "precision", "weights")) else MANIFEST
    tree = json.loads(to_json(kind))
    *parents, last = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", ...),
        ("labels", "daisy"),
        ("revision", "2"),
        ("images", 1.5),
        ("created", "yesterday"),
        ("exemplars", [{"label": "daisy", "digest": "../../etc/passwd"}]),
        ("exemplars", [{"label": "daisy", "digest": "A" * 64}]),
        ("exemplars", [A]),
        ("head", ""),
        ("head", "a" * 63),
        ("metrics", "a" * 65),
        ("backbone", "/" + "a" * 64),
        ("backbone_info", "a" * 64 + "/.."),
        ("data_digest", "g" * 64),
        ("head", A + "\n"),
        ("weights_digest", "x"),
        ("precision", "fp8"),
        ("preprocess.interpolation", "nearest"),
        ("preprocess.deep_grey", "gamma"),
        ("preprocess.crop", 257),
        ("preprocess.crop", 0),
        ("preprocess.resize", 4097),
        ("revision", 2**63),
        ("parent", -1),
        ("images", 10**29),
        ("seed", -(2**63) - 1),
        ("comparison.images", 2**31),
        ("rejection.gate.max_conflicts", -1),
    ],
)
def test_invalid_field_is_corrupt(path: str, value: Any) -> None:
    """A missing or invalid field is Corrupt; the message names the file and the field."""
    content = changed(path, value)
    kind = BackboneInfo if b'"precision"' in content else Manifest
    with pytest.raises(Corrupt) as caught:
        from_json(content, kind, name="the file")
    assert "the file cannot be used" in str(caught.value)
    assert path.split(".", maxsplit=1)[0] in str(caught.value)


def test_backbone_without_deep_grey_decodes_as_depth() -> None:
    """Earlier versions, which supported only ``depth``, did not store the field."""
    old = from_json(changed("preprocess.deep_grey", ...), BackboneInfo, name="it")
    assert old == replace(BACKBONE, preprocess=replace(BACKBONE.image_spec, deep_grey="depth"))
    assert from_json(to_json(old), BackboneInfo, name="it") == old
    assert BACKBONE.image_spec.deep_grey == "percentiles"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        to_json(MANIFEST)[:-30],
        to_json(MANIFEST) + b"{}",
        to_json(MANIFEST).replace(b"flowers", b"flo\0ers"),
        to_json(MANIFEST).replace(b"flowers", b"flow\xffrs"),
        b'{"unknown":' + b"[" * 100_000,
    ],
    ids=["empty", "list", "null", "truncated", "trailing", "control", "not UTF-8", "nested"],
)
def test_invalid_json_is_corrupt(content: bytes) -> None:
    """A document that is not one JSON object in UTF-8 is Corrupt; the message names the file."""
    with pytest.raises(Corrupt, match="the file cannot be used"):
        from_json(content, Manifest, name="the file")


def test_equal_values_give_equal_bytes() -> None:
    """The JSON depends only on the value, so its sha256 identifies it."""
    again = replace(BACKBONE, versions=dict(BACKBONE.versions))
    assert to_json(again) == to_json(BACKBONE)
    assert to_json(replace(BACKBONE, width=1)) != to_json(BACKBONE)
