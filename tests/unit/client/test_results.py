"""Results as values, which also work in programs written for the protobuf messages."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from google.longrunning import operations_pb2
from google.rpc import code_pb2, status_pb2

from topwork.client.results import ClassifyResult, ImageResult, Operation, Prediction
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import revision_pb2 as revision_pb

PREDICTIONS = [
    classify_pb.Prediction(label="tulips", probability=0.75),
    classify_pb.Prediction(label="roses", probability=0.25),
]
CLASSIFIED = classify_pb.ImageResult(
    classification=classify_pb.Classification(
        predictions=PREDICTIONS, unknown_probability=0.5, is_unknown=True
    )
)
FAILED = classify_pb.ImageResult(
    error=status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no photo")
)
RESPONSE = classify_pb.ClassifyResponse(revision=3, results=[CLASSIFIED, FAILED])


def test_classified_image_has_predictions_and_no_error() -> None:
    """The labels have their probabilities, in order; ``unknown_probability`` is the model's."""
    result = ImageResult.of(CLASSIFIED)
    assert result.predictions == (Prediction("tulips", 0.75), Prediction("roses", 0.25))
    assert (result.unknown_probability, result.is_unknown, result.error) == (0.5, True, None)
    assert result.raw is CLASSIFIED


def test_invalid_image_has_an_error_and_no_predictions() -> None:
    """The code and the message are the server's."""
    result = ImageResult.of(FAILED)
    assert result.error is not None
    assert (result.error.code, str(result.error)) == ("INVALID_ARGUMENT", "no photo")
    assert (result.predictions, result.unknown_probability, result.is_unknown) == ((), None, None)


def test_unknown_probability_is_none_if_the_model_has_no_estimate() -> None:
    """None differs from a probability of 0."""
    raw = classify_pb.ImageResult(
        classification=classify_pb.Classification(predictions=PREDICTIONS)
    )
    result = ImageResult.of(raw)
    assert (result.unknown_probability, result.is_unknown) == (None, None)


def test_classify_result_has_the_results_in_order() -> None:
    """It has the revision that classified them."""
    answer = ClassifyResult.of(RESPONSE)
    assert answer.revision == 3
    assert [result.error is None for result in answer.results] == [True, False]


def test_operation_has_progress_and_result() -> None:
    """Both are unpacked from the Any fields of the message."""
    raw = operations_pb2.Operation(name="operations/x", done=True)
    raw.metadata.Pack(change_pb.ChangeMetadata(label="tulips"))
    raw.response.Pack(change_pb.ChangeResponse(images_used=7))
    operation = Operation.of(raw)
    assert (operation.name, operation.done) == ("operations/x", True)
    assert operation.progress().label == "tulips"
    assert operation.result().images_used == 7


def test_values_have_the_attributes_of_their_messages() -> None:
    """Programs written for the messages continue to work."""
    answer: Any = ClassifyResult.of(RESPONSE)
    first, second = answer.results
    assert answer.HasField("timings") is False
    assert first.WhichOneof("result") == "classification"
    assert first.classification.predictions[0].label == "tulips"
    assert second.HasField("error")
    assert second.error.message == "no photo"
    operation: Any = Operation.of(operations_pb2.Operation(error=FAILED.error))
    assert operation.HasField("error")
    assert operation.error.code == code_pb2.INVALID_ARGUMENT


def test_attribute_that_the_message_lacks_raises() -> None:
    """The AttributeError has the name."""
    answer: Any = ClassifyResult.of(RESPONSE)
    with pytest.raises(AttributeError, match="colour"):
        answer.colour  # noqa: B018  # what is tested


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy])
def test_values_can_be_copied_and_hashed(through: Any) -> None:
    """A copy is equal, of the same type, and has the same hash."""
    for value in (ImageResult.of(CLASSIFIED), Operation.of(operations_pb2.Operation(name="x"))):
        copied = through(value)
        assert type(copied) is type(value)
        assert (copied, hash(copied)) == (value, hash(value))


def pickled(value: Any) -> Any:
    """Return ``value`` after a pickle round trip."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301 # our own


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, pickled])
def test_error_can_be_copied_and_pickled(through: Any) -> None:
    """An image's error survives a copy of its result and a transfer to another process."""
    failed = classify_pb.ImageResult(error=status_pb2.Status(code=code_pb2.NOT_FOUND, message="x"))
    copied = through(ImageResult.of(failed))
    assert copied.error.status == failed.error
    assert (copied.error.code, str(copied.error)) == ("NOT_FOUND", "x")


def test_notebook_shows_predictions_and_the_error_escaped() -> None:
    """Labels and messages come from outside and may look like HTML."""
    raw = classify_pb.ImageResult(
        classification=classify_pb.Classification(
            predictions=[classify_pb.Prediction(label="<b>", probability=0.75)],
            unknown_probability=0.9,
            is_unknown=True,
        )
    )
    html = ImageResult.of(raw)._repr_html_()
    assert "<td>&lt;b&gt;</td><td>0.750</td>" in html
    assert "unknown: 0.900" in html
    assert "error: no photo" in ImageResult.of(FAILED)._repr_html_()


def test_notebook_shows_the_comparison_of_a_finished_or_rejected_change() -> None:
    """A change in progress has none."""
    comparison = revision_pb.Comparison(
        accuracy_before=0.96,
        accuracy_after=0.95,
        labels=[revision_pb.LabelComparison(label="roses", recall_before=0.9, recall_after=0.8)],
        taught_labels=[revision_pb.TaughtLabel(label="tulips", recall=0.7)],
    )
    done, rejected = (operations_pb2.Operation(name="operations/1", done=True) for _ in range(2))
    done.response.Pack(change_pb.ChangeResponse(comparison=comparison))
    rejected.error.message = "rejected"
    rejected.error.details.add().Pack(comparison)
    for operation, text in ((done, "operations/1: done"), (rejected, "operations/1: rejected")):
        html = Operation.of(operation)._repr_html_()
        assert text in html
        assert "<td>accuracy on the old labels</td><td>0.960</td><td>0.950</td>" in html
        assert "<td>recall of roses</td><td>0.900</td><td>0.800</td>" in html
        assert "<td>recall of tulips</td><td></td><td>0.700 (0.000 to 0.000)</td>" in html
    running = Operation.of(operations_pb2.Operation(name="operations/1"))
    assert running._repr_html_() == "<p>operations/1: in progress</p>"
