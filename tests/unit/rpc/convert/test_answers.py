"""Conversion of classified images."""

from __future__ import annotations

from topwork.errors import ImageError
from topwork.rpc.convert.answers import to_classify_response
from topwork.serving.classify_batch import Classified, ImageAnswer, LabelProbability, Timings


def test_results_keep_the_order_of_the_images() -> None:
    """Results, predictions and stage times are in their fields, in order."""
    error = ImageError("cut off", field="images[1]")
    message = to_classify_response(
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
    assert [(label.label, label.probability) for label in first.classification.predictions] == [
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


def test_model_without_unknown_detection_leaves_its_fields_unset() -> None:
    """Neither probability nor verdict is set, which differs from false."""
    answer = ImageAnswer(predictions=(), unknown_probability=None, is_unknown=False)
    timings = Timings(decode=0, queue=0, backbone=0, head=0, total=0)
    message = to_classify_response(Classified(revision=1, results=(answer,), timings=timings))
    found = message.results[0].classification
    assert not found.HasField("unknown_probability")
    assert not found.HasField("is_unknown")
