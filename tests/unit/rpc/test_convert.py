"""Values of the engine become messages of the contract, nothing lost and nothing swapped."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from support import tiny
from support.reports import COMPARISON

from topwork.bundle.comparison import Gate
from topwork.bundle.findings import Finding
from topwork.bundle.serving import Move, ServingState
from topwork.changes.jobs import (
    ChangeOutcome,
    ChangeResult,
    Conflict,
    Failure,
    Predicted,
    Progress,
    SkippedUpload,
    StageSeconds,
)
from topwork.changes.rows import OperationState, Subject
from topwork.errors import ImageError, InvalidInput
from topwork.limits import DEFAULT_LIMITS, ServerLimits
from topwork.rpc import convert
from topwork.serving.classify_batch import Classified, ImageAnswer, LabelProbability, Timings
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import revision_pb2 as revision_pb

CONFLICT = Conflict(name="c.jpg", label="blue", other="d.jpg", exact=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> convert.PublishedRevision:
    """Return a real revision."""
    repository = tiny.repository(tmp_path_factory.mktemp("convert") / "repository")
    manifest = repository.manifest("colours", 1)
    return convert.PublishedRevision(
        manifest, repository.metrics(manifest), repository.backbone(manifest)
    )


def operation(progress: Progress, outcome: ChangeOutcome | None = None) -> OperationState:
    """Return an operation in some state."""
    created = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    return OperationState(
        id="abc",
        subject=Subject(
            kind="rename_class",
            model="colours",
            label="violet",
            new_label="mauve",
            validate_only=True,
        ),
        created=created,
        ended=created + timedelta(seconds=2.5) if outcome is not None else None,
        progress=progress,
        outcome=outcome,
    )


def metadata_of(message: object) -> change_pb.ChangeMetadata:
    """Return an operation's metadata."""
    metadata = change_pb.ChangeMetadata()
    assert message.metadata.Unpack(metadata)  # type: ignore[attr-defined]  # google.longrunning has no types
    return metadata


@pytest.mark.parametrize("name", ["flowers", "models", "models/", "/flowers", "models/a/b",
                                  "model/flowers", "operations/flowers", ""])  # fmt: skip
def test_a_name_of_another_form_is_refused(name: str) -> None:
    """Anything but ``models/{model}`` is InvalidInput, and names the field."""
    with pytest.raises(InvalidInput) as caught:
        convert.resource_id(name, collection="models", field="config.model")
    assert (caught.value.field, caught.value.reason) == ("config.model", "RESOURCE_NAME_INVALID")


def test_the_id_of_a_name() -> None:
    """The id is what follows the collection."""
    assert convert.resource_id("models/flowers", collection="models", field="model") == "flowers"


def test_a_classification_keeps_the_order() -> None:
    """Results, predictions and each stage's time stay where they were."""
    error = ImageError("cut off", field="images[1]")
    message = convert.to_classify_response(
        Classified(
            revision=7,
            results=(
                ImageAnswer(
                    predictions=(
                        LabelProbability(label="roses", probability=0.75),
                        LabelProbability(label="tulips", probability=0.25),
                    ),
                    unknown_probability=0.5,
                    is_unknown=True,
                ),
                error,
            ),
            timings=Timings(decode=1.0, queue=0.25, backbone=2.5, head=0.125, total=3.0),
        )
    )
    first, second = message.results
    assert message.revision == 7
    assert [(one.label, one.probability) for one in first.classification.predictions] == [
        ("roses", 0.75),
        ("tulips", 0.25),
    ]
    assert first.WhichOneof("result") == "classification"
    assert first.classification.unknown_probability == 0.5
    assert first.classification.is_unknown
    assert second.WhichOneof("result") == "error"
    assert second.error.message == "cut off"
    stages = ("decode", "queue", "backbone", "head", "total")
    seconds = [getattr(message.timings, stage).ToNanoseconds() / 1e9 for stage in stages]
    assert seconds == [1.0, 0.25, 2.5, 0.125, 3.0]


def test_a_model_that_cannot_tell_the_unknown_says_nothing_of_it() -> None:
    """Neither a probability nor a verdict is set, which is not the same as a denial."""
    answer = ImageAnswer(predictions=(), unknown_probability=None, is_unknown=False)
    timings = Timings(decode=0, queue=0, backbone=0, head=0, total=0)
    message = convert.to_classify_response(
        Classified(revision=1, results=(answer,), timings=timings)
    )
    found = message.results[0].classification
    assert not found.HasField("unknown_probability")
    assert not found.HasField("is_unknown")


def test_a_model_says_all_that_the_manifest_does(published: convert.PublishedRevision) -> None:
    """A model's message has its revision's facts, from labels to the confusion matrix."""
    manifest, metrics = published.manifest, published.metrics
    assert metrics is not None
    moves = tuple(
        Move(
            revision=number,
            previous=number - 1,
            why="add_class" if number % 2 else "rollback",
            operation=f"operation-{number}" if number % 2 else "",
            time=datetime(2026, 3, 4, tzinfo=UTC) + timedelta(seconds=number),
        )
        for number in range(1, 121)
    )
    stored = convert.StoredModel(
        ServingState(revision=1, pinned=(1, 7), moves=moves), published, list(range(1, 121))
    )
    message = convert.to_model(stored, DEFAULT_LIMITS)
    revision = message.serving_revision
    assert (message.name, list(message.revisions)) == ("models/colours", list(range(1, 121)))
    assert list(message.pinned_revisions) == [1, 7]
    assert [one.revision for one in message.moves] == list(range(120, 20, -1))
    latest, second = message.moves[:2]
    assert (latest.revision, latest.previous_revision) == (120, 119)
    assert (latest.cause, latest.operation) == ("rollback", "")
    assert latest.time.ToDatetime(UTC) == moves[-1].time
    assert (second.cause, second.operation) == ("add_class", "operations/operation-119")
    assert revision.name == "models/colours/revisions/1"
    assert (revision.revision, revision.parent_revision) == (1, 0)
    assert tuple(revision.labels) == manifest.labels
    assert revision.backbone.digest == manifest.backbone
    assert (revision.backbone.name, revision.backbone.width) == ("tiny", tiny.WIDTH)
    spec = revision.backbone.preprocess
    assert (spec.resize, spec.crop, spec.interpolation) == (16, 16, "bicubic")
    created = revision.create_time.ToDatetime(UTC)
    assert abs(created - manifest.created) < timedelta(microseconds=2)
    assert revision.metrics.accuracy == metrics.accuracy
    assert revision.metrics.expected_calibration_error == metrics.ece
    assert metrics.unknown is not None
    assert revision.metrics.unknown.auroc == metrics.unknown.auroc
    assert revision.backbone.precision == "fp32"
    chosen = manifest.chosen
    assert (revision.head.kind, revision.head.normalisation) == ("logistic", "sqrt_l2")
    assert (revision.head.strength, revision.head.temperature) == (
        chosen.strength,
        chosen.temperature,
    )
    assert revision.head.unknown_threshold == chosen.unknown_threshold
    assert [(one.label, one.images) for one in revision.metrics.per_label] == [
        (label, 20) for label in manifest.labels
    ]
    size = len(manifest.labels)
    assert [
        list(revision.metrics.confusion[row * size : (row + 1) * size]) for row in range(size)
    ] == [list(row) for row in metrics.confusion]


def test_damaged_metrics_leave_a_revision_its_labels(published: convert.PublishedRevision) -> None:
    """What cannot be read is unset, and all that the manifest says is told."""
    revision = convert.to_revision(convert.PublishedRevision(published.manifest, None, None))
    assert tuple(revision.labels) == published.manifest.labels
    assert not revision.HasField("metrics")
    assert not revision.HasField("backbone")


def test_every_limit_is_told(published: convert.PublishedRevision) -> None:
    """The limits' message has each of Topwork's limits under its own name."""
    limits = ServerLimits(**{field.name: 1000 + n for n, field in enumerate(fields(ServerLimits))})
    stored = convert.StoredModel(ServingState(revision=1), published, [1])
    message = convert.to_model(stored, limits).limits
    told = {field.name: value for field, value in message.ListFields()}
    assert told == asdict(limits)


@pytest.mark.parametrize("stage", convert.STAGES)
def test_an_operation_says_how_far_it_is(stage: str) -> None:
    """Metadata has what is asked for, time, and stage, counts and conflicts of the progress."""
    progress = Progress(stage=stage, done=3, total=9, conflicts=(CONFLICT,))  # type: ignore[arg-type]  # one of the keys
    message = convert.to_operation(operation(progress), None)
    metadata = metadata_of(message)
    name = change_pb.ChangeStage.Name(metadata.stage)
    assert (message.name, message.done) == ("operations/abc", False)
    assert message.WhichOneof("result") is None
    assert name == f"CHANGE_STAGE_{stage.upper()}"
    assert (metadata.model, metadata.label) == ("models/colours", "violet")
    assert (metadata.kind, metadata.new_label) == (change_pb.CHANGE_KIND_RENAME_CLASS, "mauve")
    assert metadata.validate_only
    assert (metadata.done, metadata.total) == (3, 9)
    (conflict,) = metadata.conflicts
    assert (conflict.display_name, conflict.label) == ("c.jpg", "blue")
    assert (conflict.other_name, conflict.exact) == ("d.jpg", True)
    assert metadata.elapsed.ToNanoseconds() > 0
    assert metadata.create_time.ToDatetime(UTC) == operation(Progress(stage="done")).created


def test_a_failed_operation_has_its_error() -> None:
    """An operation that failed is done and has an error, no response."""
    failure = Failure(kind="NotReady", reason="TOO_FEW_IMAGES", message="2 usable images")
    message = convert.to_operation(
        operation(Progress(stage="done"), ChangeOutcome(failure=failure)), None
    )
    assert (message.done, message.WhichOneof("result")) == (True, "error")
    assert (message.error.code, message.error.message) == (9, "2 usable images")
    assert metadata_of(message).elapsed.ToNanoseconds() == 2_500_000_000


def test_a_rejected_change_has_the_numbers() -> None:
    """The error of a change that its gate rejected names the revision and has the comparison."""
    failure = Failure(
        kind="NotReady", reason="GATE_FAILED", message="rejected", revision=7, comparison=COMPARISON
    )
    message = convert.to_operation(
        operation(Progress(stage="done"), ChangeOutcome(failure=failure)), None
    )
    info, comparison = error_details_pb2.ErrorInfo(), revision_pb.Comparison()
    assert message.error.details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("GATE_FAILED", {"revision": "7"})
    assert message.error.details[1].Unpack(comparison)
    assert comparison == convert.to_comparison(COMPARISON)


def test_a_finished_operation_has_its_response(published: convert.PublishedRevision) -> None:
    """A success has its revision (its name, once that was removed) and all that came of it."""
    skipped = SkippedUpload(name="b.jpg", reason="DUPLICATE", message="same pixels as a.jpg")
    result = ChangeResult(
        revision=1,
        images_used=19,
        skipped=(skipped,),
        conflicts=(CONFLICT,),
        comparison=COMPARISON,
        # A clock that was set back between two readings must not break the message.
        seconds=StageSeconds(queued=-1.0, embedding=1.5, solving=2.5, publishing=0.5),
    )
    message = convert.to_operation(
        operation(Progress(stage="done"), ChangeOutcome(result=result)), published
    )
    response = change_pb.ChangeResponse()
    assert message.done
    assert message.response.Unpack(response)
    assert response.revision == convert.to_revision(published)
    assert response.images_used == 19
    (left_out,) = response.skipped_images
    assert (left_out.display_name, left_out.error.message) == ("b.jpg", "same pixels as a.jpg")
    assert response.comparison == convert.to_comparison(COMPARISON)
    assert [one.display_name for one in response.conflicts] == ["c.jpg"]
    times = response.stage_times
    stages = (times.queued, times.embedding, times.solving, times.publishing)
    assert [one.ToNanoseconds() / 1e9 for one in stages] == [0, 1.5, 2.5, 0.5]


def test_a_revision_that_is_gone_has_its_name() -> None:
    """The response of an operation whose revision was removed since has name and number."""
    result = ChangeResult(
        revision=7, images_used=3, skipped=(), conflicts=(), comparison=COMPARISON
    )
    message = convert.to_operation(
        operation(Progress(stage="done"), ChangeOutcome(result=result)), None
    )
    response = change_pb.ChangeResponse()
    assert message.response.Unpack(response)
    assert response.revision == convert.damaged_revision("colours", 7)
    assert response.revision.name == "models/colours/revisions/7"


def test_what_was_only_validated_has_no_number(published: convert.PublishedRevision) -> None:
    """Labels, metrics, findings and the gate's reasons are told of what was not published."""
    assert published.metrics is not None
    finding = Finding(kind="copies", severity="note", message="alike", images=("a",), labels=("b",))
    result = ChangeResult(
        revision=0,
        images_used=3,
        skipped=(),
        conflicts=(),
        comparison=COMPARISON,
        gate_failures=("too much was lost",),
        findings=(finding,),
        predicted=Predicted(labels=("blue", "mauve"), metrics=published.metrics),
    )
    message = convert.to_operation(
        operation(Progress(stage="done"), ChangeOutcome(result=result)), None
    )
    response = change_pb.ChangeResponse()
    assert message.response.Unpack(response)
    assert (response.revision.name, response.revision.revision) == ("", 0)
    assert list(response.revision.labels) == ["blue", "mauve"]
    assert response.revision.metrics == convert.to_revision(published).metrics
    assert list(response.gate_failures) == ["too much was lost"]
    (found,) = response.findings
    assert (found.kind, found.severity, found.message) == ("copies", "note", "alike")


def test_a_comparison_has_all_its_numbers() -> None:
    """Each of a comparison's numbers is where it belongs; none at all is no message."""
    message = convert.to_comparison(COMPARISON)
    assert message is not None
    assert (message.images, message.accuracy_before, message.accuracy_after) == (60, 0.95, 0.9)
    assert (message.drop, message.drop_low, message.drop_high) == (0.05, 0.02, 0.08)
    assert message.calibration_error_before == COMPARISON.ece_before
    assert message.calibration_error_after == COMPARISON.ece_after
    assert [
        (one.label, one.images, one.recall_before, one.recall_after) for one in message.labels
    ] == [("daisy", 30, 0.9, 0.9), ("rose", 30, 1.0, 0.9)]
    taught = message.taught
    assert (taught.label, taught.images, taught.recall) == ("tulip", 30, 0.4)
    assert (taught.recall_low, taught.recall_high) == (0.25, 0.58)
    (confusion,) = message.confusions
    assert (confusion.label, confusion.called) == ("tulip", "rose")
    assert (confusion.images, confusion.share) == (18, 0.6)
    assert convert.to_comparison(None) is None


def test_a_gate_is_the_default_where_it_is_unset() -> None:
    """Unset fields are those of Gate; what is set is taken, 0 too."""
    assert convert.from_gate(change_pb.Gate(), field="gate") == Gate()
    given = change_pb.Gate(max_old_class_drop=0, min_new_class_recall=0.5, max_conflicts=0)
    assert convert.from_gate(given, field="gate") == Gate(
        max_old_class_drop=0, min_new_class_recall=0.5, max_conflicts=0
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_old_class_drop", -0.1),
        ("max_old_class_drop", float("nan")),
        ("min_new_class_recall", 1.1),
        ("max_conflicts", -1),
    ],
)
def test_a_gate_that_is_none(name: str, value: float) -> None:
    """A share beyond 0 to 1 and a negative number are InvalidInput, and name the field."""
    gate = change_pb.Gate()
    setattr(gate, name, value)
    with pytest.raises(InvalidInput, match=name) as caught:
        convert.from_gate(gate, field="options.gate")
    assert caught.value.field == f"options.gate.{name}"


@pytest.mark.parametrize(
    "name",
    [
        *("", "models", "models/", "/x", "x", "operations/x", "models/x/y", "models/../x"),
        *("models/x\0", "models/x\ny", "models/\u202ex", "models/" + "x" * 194, "x" * 10**7),
    ],
)
def test_a_resource_name_is_one_visible_id_of_its_collection(name: str) -> None:
    """Anything else, and anything long, is InvalidInput that names the field, in few words."""
    with pytest.raises(InvalidInput, match="must be a resource name") as caught:
        convert.resource_id(name, collection="models", field="name")
    assert (caught.value.field, caught.value.reason) == ("name", "RESOURCE_NAME_INVALID")
    assert len(str(caught.value)) < 600
    assert convert.resource_id("models/" + "x" * 193, collection="models", field="name")


def test_seconds_are_not_negative() -> None:
    """A negative duration is InvalidInput, and names the field."""
    assert convert.seconds(Duration(seconds=3, nanos=5 * 10**8), field="timeout") == 3.5
    with pytest.raises(InvalidInput, match=r"timeout is -1\.5 s") as caught:
        convert.seconds(Duration(seconds=-1, nanos=-5 * 10**8), field="timeout")
    assert caught.value.field == "timeout"
