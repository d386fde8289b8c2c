"""Contents of synthetic reports: random embeddings, and predictions of a chosen accuracy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from topwork.bundle import exemplars
from topwork.bundle.comparison import (
    Comparison,
    ConfusedLabels,
    Gate,
    LabelChange,
    Rejection,
    TaughtLabel,
)
from topwork.bundle.findings import Finding
from topwork.bundle.manifest import BackboneInfo, ChosenHead, Manifest, ShardRef
from topwork.bundle.metrics import LeftOutLabel, TriedHead, UnknownMetrics, evaluate
from topwork.bundle.recipe import Recipe
from topwork.inputs.preprocess import PreprocessSpec
from topwork.learning.learn import Judged
from topwork.report.content import Content, Making, Parent, RankedBackbone
from topwork.report.embedding_map import locate

DIGEST = "ab" * 32
FLOWERS = ("daisy", "rose", "tulip")
JPEG = b"\xff\xd8\xff\xe0 no real picture, but bytes as a shard may have them \xff\xd9"


def content(
    labels: Sequence[str] = FLOWERS,
    *,
    images: int = 30,
    mistakes: float = 0.2,
    names: bool = True,
    thumbnails: bool = True,
    seed: int = 0,
) -> Content:
    """Return a report's content with ``images`` a label, a share of them predicted wrong.

    It has no parent, no out-of-distribution metrics and no findings.
    """
    rng = np.random.default_rng(seed)
    count = len(labels) * images
    targets = np.repeat(np.arange(len(labels)), images)
    centres = rng.normal(0, 1, (len(labels), 16))
    digests = [hashlib.sha256(f"{seed} {row}".encode()).digest() for row in range(count)]
    rows = exemplars.make(
        (centres[targets] + rng.normal(0, 0.5, (count, 16))).astype(np.float32),
        np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
        rng.integers(0, 256, (count, 32), dtype=np.uint8),
        [labels[target] for target in targets.tolist()],
        names=[f"folder/{row:04}.jpg" if names else "" for row in range(count)],
        thumbnails=[JPEG if thumbnails else b""] * count,
    )
    wrong = rng.random(count) < mistakes
    predicted = np.where(wrong, (rows.targets + 1) % len(labels), rows.targets)
    probabilities = np.full((count, len(labels)), 1.0)
    probabilities[np.arange(count), predicted] = len(labels) * rng.uniform(1, 20, count)
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    return Content(
        manifest=manifest(rows.labels, count),
        metrics=evaluate(rows.targets, probabilities, rows.labels, folds=5),
        backbone=BACKBONE,
        exemplars=rows,
        judged=Judged(rows=np.arange(count), probabilities=probabilities),
        parent=None,
        making=Making(command="topwork-train fit photos"),
        places=locate(rows),
    )


def full(small: Content) -> Content:
    """Return ``small`` with every optional part of a report."""
    older = content(small.manifest.labels[:-1], seed=1)
    finding = Finding(
        kind="suspected_label",
        severity="warning",
        message="some images look like another label",
        images=small.exemplars.names[:3],
        labels=small.manifest.labels[:2],
    )
    return replace(
        small,
        metrics=replace(
            small.metrics,
            unknown=UnknownMetrics(
                auroc=0.9,
                false_reject_rate=0.05,
                detection_rate=0.7,
                per_label=tuple(
                    LeftOutLabel(label=label, auroc=0.9) for label in small.manifest.labels
                ),
            ),
            candidates=(CANDIDATE, replace(CANDIDATE, head="ridge", chosen=False)),
        ),
        parent=Parent(manifest=replace(older.manifest, revision=1), metrics=older.metrics),
        making=Making(
            command="topwork-train fit photos",
            findings=(
                finding,
                replace(finding, kind="unreadable", severity="error", message="one is torn"),
                replace(finding, kind="copies", severity="note", message="three are alike"),
            ),
            backbones=(
                TRIED,
                replace(TRIED, name="large", chosen=False, error="no weights"),
            ),
            notes=("The fine-tuned backbone was not taken.",),
        ),
    )


def candidate(small: Content, *, rejected: bool = False) -> Content:
    """Return ``small`` as made from revision 1 by an AddClass of its last label."""
    older = content(small.manifest.labels[:-1], seed=1)
    return replace(
        small,
        manifest=replace(
            small.manifest,
            parent=1,
            change="add_class",
            operation="operation-1",
            comparison=COMPARISON,
            rejection=Rejection(gate=Gate(), failures=FAILURES) if rejected else None,
        ),
        parent=Parent(manifest=replace(older.manifest, revision=1), metrics=older.metrics),
    )


def manifest(labels: tuple[str, ...], images: int) -> Manifest:
    """Return the manifest of a second revision."""
    return Manifest(
        model="flowers",
        revision=2,
        parent=0,
        labels=labels,
        backbone=DIGEST,
        backbone_info=DIGEST,
        head=DIGEST,
        metrics=DIGEST,
        report="",
        exemplars=tuple(ShardRef(label=label, digest=DIGEST) for label in labels),
        data_digest=DIGEST,
        images=images,
        seed=0,
        recipe=Recipe(),
        chosen=ChosenHead(
            kind="logistic",
            normalisation="l2",
            strength=30.0,
            temperature=0.9,
            unknown_threshold=None,
        ),
        precision_gate=None,
        change="fit",
        operation="",
        comparison=None,
        rejection=None,
        created=datetime(2026, 3, 1, 14, 5, 9, tzinfo=UTC),
        versions={"topwork": "0.1.0"},
    )


COMPARISON = Comparison(
    images=60,
    accuracy_before=0.95,
    accuracy_after=0.9,
    drop=0.05,
    drop_low=0.02,
    drop_high=0.08,
    ece_before=0.01,
    ece_after=0.02,
    labels=(
        LabelChange(
            label="daisy", images=30, recall_before=0.9, recall_after=0.9, lost=1, gained=1
        ),
        LabelChange(label="rose", images=30, recall_before=1.0, recall_after=0.9, lost=3, gained=0),
    ),
    taught=TaughtLabel(label="tulip", images=30, recall=0.4, low=0.25, high=0.58),
    confusions=(ConfusedLabels(label="tulip", called="rose", images=18, share=0.6),),
)
FAILURES = ("too much was lost of 'rose'", "'tulip' was not <b>learnt</b>")
BACKBONE = BackboneInfo(
    name="tiny",
    identity="tiny:1",
    digest=DIGEST,
    preprocess=PreprocessSpec(resize=16, crop=16),
    width=16,
    precision="fp32",
    licence="Apache-2.0",
    source="tests",
    weights_digest=DIGEST,
    parity_error=2e-6,
    versions={},
)
CANDIDATE = TriedHead(
    head="logistic",
    normalisation="sqrt_l2",
    strength=30.0,
    accuracy=0.9,
    log_loss=0.3,
    chosen=True,
)
TRIED = RankedBackbone(
    name="tiny",
    image_size=16,
    views=1,
    accuracy=0.9,
    accuracy_low=0.85,
    accuracy_high=0.94,
    knn_accuracy=0.8,
    milliseconds=1.5,
    megabytes=0.1,
    width=16,
    licence="Apache-2.0",
    chosen=True,
)
