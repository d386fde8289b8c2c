"""Values of the engine become messages of the contract, nothing lost and nothing swapped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support import tiny

from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.engine.jobs import (
    AddClassResult,
    Failure,
    Outcome,
    Progress,
    SkippedUpload,
    StageSeconds,
)
from topwork.engine.operations import Operation
from topwork.engine.serving.classify_job import Answer, Classified, Prediction, Timings
from topwork.errors import ImageError, InvalidInput
from topwork.rpc import convert
from topwork.v1 import change_pb2 as change_pb


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> convert.Published:
    """Return a real revision."""
    repository = tiny.repository(tmp_path_factory.mktemp("convert") / "repository")
    manifest = repository.manifest("colours", 1)
    return convert.Published(manifest, repository.metrics(manifest), repository.backbone(manifest))


def operation(progress: Progress, outcome: Outcome | None = None) -> Operation:
    """Return an operation in some state."""
    created = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    return Operation(
        id="abc",
        model="colours",
        label="violet",
        created=created,
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
                Answer(
                    predictions=(
                        Prediction(label="roses", probability=0.75),
                        Prediction(label="tulips", probability=0.25),
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
    answer = Answer(predictions=(), unknown_probability=None, is_unknown=False)
    timings = Timings(decode=0, queue=0, backbone=0, head=0, total=0)
    message = convert.to_classify_response(
        Classified(revision=1, results=(answer,), timings=timings)
    )
    found = message.results[0].classification
    assert not found.HasField("unknown_probability")
    assert not found.HasField("is_unknown")


def test_a_model_says_all_that_the_manifest_does(published: convert.Published) -> None:
    """A model's message has its revision's facts, from labels to the confusion matrix."""
    manifest, metrics = published.manifest, published.metrics
    message = convert.to_model(published, [1, 2], DEFAULT_LIMITS)
    revision = message.serving_revision
    assert (message.name, list(message.revisions)) == ("models/colours", [1, 2])
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


def test_every_limit_is_told(published: convert.Published) -> None:
    """The limits' message has each of Topwork's limits under its own name."""
    limits = Limits(**{name: 1000 + n for n, name in enumerate(Limits.__slots__)})
    message = convert.to_model(published, [1], limits).limits
    told = {field.name: value for field, value in message.ListFields()}
    assert told == {name: getattr(limits, name) for name in Limits.__slots__}


@pytest.mark.parametrize("stage", convert.STAGES)
def test_an_operation_says_how_far_it_is(stage: str) -> None:
    """Metadata has model, label, time, and stage and counts of the progress."""
    message = convert.to_operation(
        operation(Progress(stage=stage, done=3, total=9)),  # type: ignore[arg-type]  # one of the keys
        None,
    )
    metadata = metadata_of(message)
    name = change_pb.ChangeStage.Name(metadata.stage)
    assert (message.name, message.done) == ("operations/abc", False)
    assert message.WhichOneof("result") is None
    assert name == f"CHANGE_STAGE_{stage.upper()}"
    assert (metadata.model, metadata.label) == ("models/colours", "violet")
    assert (metadata.done, metadata.total) == (3, 9)
    assert metadata.create_time.ToDatetime(UTC) == operation(Progress(stage="done")).created


def test_a_failed_operation_has_its_error() -> None:
    """An operation that failed is done and has an error, no response."""
    failure = Failure(kind="NotReady", reason="TOO_FEW_IMAGES", message="2 usable images")
    message = convert.to_operation(
        operation(Progress(stage="done"), Outcome(failure=failure)), None
    )
    assert (message.done, message.WhichOneof("result")) == (True, "error")
    assert (message.error.code, message.error.message) == (9, "2 usable images")


def test_a_finished_operation_has_its_response(published: convert.Published) -> None:
    """A success has its revision (its name, once that was removed) and all that came of it."""
    skipped = SkippedUpload(name="b.jpg", reason="DUPLICATE", message="same pixels as a.jpg")
    result = AddClassResult(
        revision=1,
        images_used=19,
        skipped=(skipped,),
        old_labels_accuracy_before=0.75,
        old_labels_accuracy_after=0.5,
        new_label_recall=0.25,
        # A clock that was set back between two readings must not break the message.
        seconds=StageSeconds(queued=-1.0, embedding=1.5, solving=2.5, publishing=0.5),
    )
    message = convert.to_operation(
        operation(Progress(stage="done"), Outcome(result=result)), published
    )
    response = change_pb.ChangeResponse()
    assert message.done
    assert message.response.Unpack(response)
    assert response.revision == convert.to_revision(published)
    assert response.images_used == 19
    (left_out,) = response.skipped_images
    assert (left_out.display_name, left_out.error.message) == ("b.jpg", "same pixels as a.jpg")
    comparison = response.comparison
    assert comparison.old_labels_accuracy_before == 0.75
    assert comparison.old_labels_accuracy_after == 0.5
    assert comparison.new_label_recall == 0.25
    times = response.stage_times
    stages = (times.queued, times.embedding, times.solving, times.publishing)
    assert [one.ToNanoseconds() / 1e9 for one in stages] == [0, 1.5, 2.5, 0.5]
