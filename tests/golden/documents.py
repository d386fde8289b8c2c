"""A value of every type of stored document, with all fields filled in."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

from topwork.bundle.candidates import CandidateRecord, Claim
from topwork.bundle.comparison import (
    Comparison,
    ConfusedLabels,
    Gate,
    LabelChange,
    Rejection,
    TaughtLabel,
)
from topwork.bundle.draft import Draft
from topwork.bundle.evaluation import Evaluation, EvaluationResult, Subgroup, UnknownDetection
from topwork.bundle.evaluation_sets import EmbeddedSet, EvaluationSet, SetImage
from topwork.bundle.findings import Finding
from topwork.bundle.manifest import (
    BackboneInfo,
    BackboneNames,
    ChosenHead,
    ExpectedEmbeddings,
    Manifest,
    PrecisionGate,
    ShardRef,
)
from topwork.bundle.metrics import (
    LabelMetrics,
    LeftOutLabel,
    Metrics,
    ReliabilityBin,
    TriedHead,
    UnknownMetrics,
)
from topwork.bundle.recipe import Recipe
from topwork.bundle.review_policy import ReviewPolicy
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.signing.signatures import Signatures
from topwork.changes import new_exemplars, retrain, worker
from topwork.changes.jobs import (
    ChangedExample,
    ChangeOutcome,
    ChangeResult,
    Conflict,
    EvaluationJob,
    Failure,
    Job,
    Predicted,
    Progress,
    SkippedUpload,
    StageSeconds,
    Upload,
)
from topwork.changes.rows import Subject
from topwork.inputs.preprocess import PreprocessSpec

A, B, C = ("0123456789abcdef" * 4, "a" * 64, "9" * 64)
"""Digests."""

TIME = datetime(2026, 11, 28, 21, 3, 4, 567_890, tzinfo=UTC)
SECONDS = TIME.timestamp()
ID = "0d5c4a36-7e59-4f3b-9a53-1c1f1d7a8b10"
GATE = Gate(max_old_class_drop=0.1, min_new_class_recall=0.5, max_conflicts=3)
RECIPE = Recipe(head="ridge", normalisation="sqrt_l2")
SKIPPED = SkippedUpload(
    name="torn.jpg", reason="IMAGE_UNREADABLE", message="it is cut off", label="daisy"
)
CONFLICT = Conflict(
    name="new.jpg", label="daisy", other="old.jpg", exact=True, uploaded_label="rose"
)

COMPARISON = Comparison(
    images=1_900,
    accuracy_before=0.95,
    accuracy_after=0.9375,
    drop=0.0125,
    drop_low=-1 / 3,
    drop_high=0.02,
    ece_before=0.01,
    ece_after=0.02,
    labels=(
        LabelChange(
            label="daisy", images=900, recall_before=1.0, recall_after=0.9, lost=90, gained=1
        ),
    ),
    taught=TaughtLabel(label="雛菊", images=100, recall=0.5, low=0.4, high=0.6),
    taught_labels=(
        TaughtLabel(label="rose", images=90, recall=0.75, low=0.7, high=0.8),
        TaughtLabel(label="雛菊", images=100, recall=0.5, low=0.4, high=0.6),
    ),
    confusions=(ConfusedLabels(label="雛菊", called="daisy", images=50, share=0.5),),
)

METRICS = Metrics(
    images=3,
    folds=5,
    accuracy=2 / 3,
    accuracy_low=0.2,
    accuracy_high=0.9,
    log_loss=0.5,
    per_label=(
        LabelMetrics(label="daisy", images=1, precision=0.5, recall=1.0),
        LabelMetrics(label="雛菊", images=2, precision=1.0, recall=0.5),
    ),
    confusion=((1, 0), (1, 1)),
    ece=0.1,
    reliability=(ReliabilityBin(low=0.0, high=1.0, images=3, confidence=0.8, accuracy=2 / 3),),
    unknown=UnknownMetrics(
        auroc=0.9,
        false_reject_rate=0.05,
        detection_rate=0.7,
        per_label=(LeftOutLabel(label="daisy", auroc=0.8),),
    ),
    candidates=(
        TriedHead(
            head="ridge",
            normalisation="l2",
            strength=10.0,
            accuracy=0.9,
            log_loss=0.4,
            chosen=True,
            images=2,
        ),
    ),
    right=b"\xa0",
)

EVALUATION = EvaluationResult(
    model="blumen",
    revision=7,
    created=TIME,
    name="held-out",
    made=TIME,
    operation="op-1",
    evaluation=Evaluation(
        revision=7,
        metrics=METRICS,
        unknown=UnknownDetection(known=3, false_rejects=1, strangers=2, detected=1, auroc=0.75),
        subgroups=(
            Subgroup(column="camera", value="north", images=2, right=1, ece=0.25, false_rejects=1),
        ),
    ),
    compared=6,
    comparison=COMPARISON,
    repeated=2,
    related=1,
    lacking={"tulips": 4},
    failure="accuracy dropped",
)

RESULT = ChangeResult(
    revision=7,
    images_used=12,
    skipped=(SKIPPED,),
    conflicts=(CONFLICT,),
    comparison=COMPARISON,
    gate_failures=("recall 0.5 is below 0.6",),
    findings=(
        Finding(
            kind="unreadable",
            severity="error",
            message="torn.jpg was left out",
            images=("torn.jpg",),
            labels=("雛菊",),
        ),
    ),
    predicted=Predicted(labels=("daisy", "雛菊"), metrics=METRICS),
    seconds=StageSeconds(queued=0.25, embedding=1.5, solving=2.0, publishing=0.125),
    parent=6,
    examples=(ChangedExample(digest=A, labels=("daisy", "雛菊")),),
    missing_labels=1,
    evaluation=EVALUATION,
)

FAILURE = Failure(
    kind="NotReady",
    reason="GATE_FAILED",
    message="revision 7 was rejected: recall 0.5 is below 0.6",
    revision=7,
    comparison=COMPARISON,
)

DOCUMENTS: tuple[object, ...] = (
    BackboneInfo(
        name="efficientnet_lite0",
        identity="efficientnet_lite0:224:int8",
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
        twin=C,
        expected=ExpectedEmbeddings(images="noise-1", embeddings=bytes(range(250, 256)) * 4),
    ),
    Manifest(
        model="flowers",
        revision=7,
        parent=6,
        labels=("daisy", "雛菊"),
        backbone=A,
        backbone_info=B,
        head=C,
        metrics=A,
        report=B,
        exemplars=(
            ShardRef(label="daisy", digest=A, added=TIME),
            ShardRef(label="雛菊", digest=B, operation=ID, added=TIME),
        ),
        data_digest=C,
        images=2_000,
        seed=-3,
        recipe=RECIPE,
        chosen=ChosenHead(
            kind="ridge",
            normalisation="sqrt_l2",
            strength=10.0,
            temperature=math.pi,
            unknown_threshold=0.75,
        ),
        precision_gate=PrecisionGate(
            taken=True, loss_points=0.25, loss_low=-0.5, loss_high=1.0, speed_ratio=2.0, why="fast"
        ),
        change="add_class",
        operation=ID,
        comparison=COMPARISON,
        rejection=Rejection(gate=GATE, failures=("recall 0.5 is below 0.6",)),
        created=TIME,
        versions={"topwork": "0.1.0"},
        examples=C,
        preview_pixels=160,
    ),
    METRICS,
    BackboneNames(names={"efficientnet_lite0@288": A, "mine": B}),
    Draft(
        model="flowers",
        backbone=A,
        backbone_info=B,
        seed=-3,
        recipe=RECIPE,
        created=TIME,
        request_id=ID,
        request=C,
        source="models/trees/revisions/4",
        exemplars=(ShardRef(label="雛菊", digest=C),),
        images=12,
        operations=(ID,),
        signatures=Signatures(signatures={"0123456789abcdef": bytes(range(64))}),
    ),
    ReviewPolicy(
        enabled=True,
        images_per_day=200,
        max_bytes=2**30,
        keep_seconds=86400,
        unknown=False,
        far=False,
        max_margin=0.25,
        random_share=0.5,
    ),
    CandidateRecord(
        reason="corrected",
        time=SECONDS,
        content=A,
        backbone=B,
        revision=3,
        label="tulips",
        probability=0.5,
        margin=0.25,
        unknown_probability=0.75,
        is_unknown=True,
        suggested_label="roses",
    ),
    Claim(operation=ID, label="roses", time=SECONDS),
    ServingState(
        revision=7,
        pinned=(1, 6),
        moves=(Move(revision=7, previous=6, why="add_class", operation=ID, time=TIME),),
    ),
    Signatures(signatures={"0123456789abcdef": bytes(range(64))}),
    EVALUATION,
    EvaluationSet(
        model="blumen",
        name="held-out",
        created=TIME,
        operation="op-1",
        max_drop=0.125,
        images=(SetImage(name="a.jpg", label="daisy", content=A, columns=(("camera", "north"),)),),
        embedded=(EmbeddedSet(backbone=B, shards=(ShardRef(label="daisy", digest=C),)),),
        renamed={"daisy": ("雛菊",)},
    ),
    Job(
        kind="add_class",
        model="flowers",
        accepted=SECONDS,
        label="雛菊",
        labels=("daisy", "rose"),
        new_label="ox-eye",
        uploads=(Upload(name="new.jpg", digest=A, label="daisy", columns=(("camera", "north"),)),),
        refused=(SKIPPED,),
        recipe=RECIPE,
        gate=GATE,
        expected_revision=6,
        validate_only=True,
        digests=(B, A),
        evaluation=EvaluationJob(revision=7, compare=6, name="held-out", max_drop=0.125),
    ),
    Subject(
        kind="add_class",
        model="flowers",
        label="雛菊",
        labels=("daisy", "rose"),
        new_label="ox-eye",
        validate_only=True,
        digests=C,
        evaluation_set="held-out",
        revision=7,
        compared=6,
    ),
    Progress(stage="embedding", done=5, total=12, conflicts=(CONFLICT,)),
    RESULT,
    ChangeOutcome(result=RESULT, ended=SECONDS),
    FAILURE,
    new_exemplars.NewExemplars(
        shards={"雛菊": A},
        shard=B,
        backbone=B,
        images=12,
        skipped=(SKIPPED,),
        conflicts=(CONFLICT,),
    ),
    retrain.Candidate(result=replace(RESULT, predicted=None), published=True, rejected=FAILURE),
    worker._StepDone(value={"shard": A}, failure=FAILURE, started=SECONDS, seconds=1.5),
)
