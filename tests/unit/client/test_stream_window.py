"""Sliding window of StreamClassify: messages within the limits, results in image order."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from topwork.client import stream_window
from topwork.client.calls import CallFailed
from topwork.client.stream_window import MESSAGE_OVERHEAD, StreamWindow
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb

KILO = 1000
LIMITS = model_pb.Limits(
    max_images_per_request=5,
    max_image_bytes=20 * KILO,
    max_message_bytes=MESSAGE_OVERHEAD + 50 * KILO,
)


def start_window(
    *, limits: model_pb.Limits = LIMITS, images: int = 4, timeout: float | None = None
) -> StreamWindow:
    """Return the window of a call with ``images`` per message."""
    return StreamWindow(
        "x", limits, revision=3, top_k=2, images_per_message=images, timeout=timeout
    )


def add(window: StreamWindow, lengths: Sequence[int]) -> list[classify_pb.StreamClassifyRequest]:
    """Return the complete messages of images of these lengths."""
    messages = (window.add(bytes(length)) for length in lengths)
    return [message for message in messages if message is not None]


def answer(message: classify_pb.StreamClassifyRequest) -> classify_pb.StreamClassifyResponse:
    """Return a prediction per image: its message and position as label, length as probability."""
    results = [
        classify_pb.ImageResult(
            classification=classify_pb.Classification(
                predictions=[
                    classify_pb.Prediction(label=f"{message.id}.{position}", probability=len(image))
                ]
            )
        )
        for position, image in enumerate(message.request.images)
    ]
    response = classify_pb.ClassifyResponse(revision=7, results=results)
    return classify_pb.StreamClassifyResponse(id=message.id, response=response)


def failure(number: int) -> classify_pb.StreamClassifyResponse:
    """Return the response to a message that failed."""
    error = status_pb2.Status(code=code_pb2.NOT_FOUND, message=f"message {number}")
    return classify_pb.StreamClassifyResponse(id=number, error=error)


def test_message_has_the_options_of_the_call() -> None:
    """Model, revision, top_k and timeout are in every message, and ids count from 0."""
    window = start_window(timeout=1.5)
    messages = add(window, [1] * 8)
    assert [message.id for message in messages] == [0, 1]
    for message in messages:
        assert (message.request.model, message.request.revision) == ("models/x", 3)
        assert (message.request.top_k, message.timeout.ToNanoseconds()) == (2, 1_500_000_000)
    assert not add(start_window(), [1] * 4)[0].HasField("timeout")


def test_message_has_images_per_message() -> None:
    """The last message has the remaining images; without any there is no last message."""
    window = start_window()
    assert [len(message.request.images) for message in add(window, [1] * 10)] == [4, 4]
    last = window.finish()
    assert last is not None
    assert len(last.request.images) == 2
    assert window.finish() is None


def test_message_has_at_most_the_servers_limit_of_images() -> None:
    """A message never has more images than the server takes in a request."""
    assert [len(message.request.images) for message in add(start_window(images=100), [1] * 10)] == [
        5,
        5,
    ]


@pytest.mark.parametrize("images", [0, -1])
def test_images_per_message_below_1_is_refused(images: int) -> None:
    """The ValueError has the value."""
    with pytest.raises(ValueError, match=f"images_per_message is {images}"):
        start_window(images=images)


@pytest.mark.slow
@given(
    lengths=st.lists(st.integers(0, 25 * KILO), max_size=30),
    largest=st.integers(1, 60 * KILO),
    order=st.randoms(use_true_random=False),
)
def test_results_are_in_image_order_for_any_order_of_responses(
    lengths: list[int], largest: int, order: random.Random
) -> None:
    """Messages fit for any lengths of images; each image has its own result, in order."""
    limits = model_pb.Limits()
    limits.CopyFrom(LIMITS)
    limits.max_image_bytes = largest
    window = start_window(limits=limits)
    messages = add(window, lengths)
    if (last := window.finish()) is not None:
        messages.append(last)
    for message in messages:
        assert message.ByteSize() <= limits.max_message_bytes
        assert 0 < len(message.request.images) <= 4
    order.shuffle(messages)
    results = []
    for message in messages:
        window.receive(answer(message))
        results += window.take()
    for length, result in zip(lengths, results, strict=True):
        assert (result.result.error is not None) == (length > largest)
        if length <= largest:
            assert result.result.predictions[0].probability == length
    window.check_complete()


def test_take_returns_results_in_the_order_of_the_messages() -> None:
    """Results are held back until the responses to all earlier messages are there."""
    window = start_window()
    first, second, third = add(window, [1] * 12)
    window.receive(answer(third))
    window.receive(answer(second))
    assert window.take() == []
    window.receive(answer(first))
    taken = [result.result.predictions[0].label for result in window.take()]
    assert taken == [f"{number}.{position}" for number in range(3) for position in range(4)]
    assert window.take() == []


def test_oversized_image_is_not_sent() -> None:
    """The message has an empty image in its place; its result has the server's error."""
    window = start_window()
    (message,) = add(window, [5, 20 * KILO + 1, 7, 8])
    assert [len(image) for image in message.request.images] == [5, 0, 7, 8]
    window.receive(answer(message))
    results = [result.result for result in window.take()]
    (error,) = filter(None, [result.error for result in results])
    assert results[1].error is error
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE")
    assert str(error) == "the image is 20001 bytes; the limit is 20000"


def test_take_raises_after_the_results_before_a_failed_message() -> None:
    """The results of all images before a failed message come first."""
    window = start_window()
    first, second, third = add(window, [1] * 12)
    window.receive(failure(second.id))
    window.receive(answer(third))
    assert window.take() == []
    window.receive(answer(first))
    assert len(window.take()) == 4
    with pytest.raises(CallFailed, match="message 1") as caught:
        window.take()
    assert caught.value.code == "NOT_FOUND"


def test_check_complete_raises_for_missing_responses() -> None:
    """A stream that ends OK with unanswered images is an error, not a short list."""
    window = start_window()
    add(window, [1] * 8)
    with pytest.raises(CallFailed, match="8 images unanswered"):
        window.check_complete()


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_IN_FLIGHT_IMAGES", 8), ("MAX_IN_FLIGHT_BYTES", 800)]
)
def test_window_is_closed_at_its_limits(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """At the limit of images or of bytes the window is closed until results are taken."""
    monkeypatch.setattr(stream_window, limit, value)
    window = start_window()
    (first,) = add(window, [100] * 4)
    assert window.is_open
    (second,) = add(window, [100] * 4)
    assert not window.is_open
    window.receive(answer(second))
    window.take()
    assert not window.is_open
    window.receive(answer(first))
    assert not window.is_open
    window.take()
    assert window.is_open
