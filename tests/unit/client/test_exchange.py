"""Images are cut into messages that fit, and their results come back in the images' order."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from topwork.client import exchange as exchanges
from topwork.client.calls import CallFailed
from topwork.client.exchange import OVERHEAD, Exchange
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import model_service_pb2 as model_pb

KILO = 1000
LIMITS = model_pb.Limits(
    max_images_per_request=5,
    max_image_bytes=20 * KILO,
    max_message_bytes=OVERHEAD + 50 * KILO,
)


def exchange(
    *, limits: model_pb.Limits = LIMITS, images: int = 4, timeout: float | None = None
) -> Exchange:
    """Return the start of a call."""
    return Exchange("x", limits, revision=3, top_k=2, images_per_message=images, timeout=timeout)


def put(to: Exchange, lengths: Sequence[int]) -> list[classify_pb.StreamClassifyRequest]:
    """Return the messages of images of these lengths, without an end."""
    return [made for length in lengths if (made := to.put(bytes(length))) is not None]


def answer(message: classify_pb.StreamClassifyRequest) -> classify_pb.StreamClassifyResponse:
    """Answer with one prediction an image: id and position as label, length as probability."""
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
    """Return the answer to a message that failed."""
    error = status_pb2.Status(code=code_pb2.NOT_FOUND, message=f"message {number}")
    return classify_pb.StreamClassifyResponse(id=number, error=error)


def test_a_message_says_what_was_asked() -> None:
    """Model, revision, top_k and timeout are in every message, and ids count from 0."""
    to = exchange(timeout=1.5)
    messages = put(to, [1] * 8)
    assert [one.id for one in messages] == [0, 1]
    for one in messages:
        assert (one.request.model, one.request.revision) == ("models/x", 3)
        assert (one.request.top_k, one.timeout.ToNanoseconds()) == (2, 1_500_000_000)
    assert not put(exchange(), [1] * 4)[0].HasField("timeout")


def test_a_message_has_as_many_images_as_asked_for() -> None:
    """The last one has what is left; an end that comes with nothing left is no message."""
    to = exchange()
    assert [len(one.request.images) for one in put(to, [1] * 10)] == [4, 4]
    last = to.end()
    assert last is not None
    assert len(last.request.images) == 2
    assert to.end() is None


def test_the_server_limits_the_images_of_a_message() -> None:
    """More images than the server takes in a request are never sent in one."""
    assert [len(one.request.images) for one in put(exchange(images=100), [1] * 10)] == [5, 5]


@pytest.mark.parametrize("images", [0, -1])
def test_a_message_without_images_is_no_message(images: int) -> None:
    """Less than one image a message is refused."""
    with pytest.raises(ValueError, match=f"images_per_message is {images}"):
        exchange(images=images)


@given(
    lengths=st.lists(st.integers(0, 25 * KILO), max_size=30),
    largest=st.integers(1, 60 * KILO),
    order=st.randoms(use_true_random=False),
)
def test_any_images_in_any_order_of_answers(
    lengths: list[int], largest: int, order: random.Random
) -> None:
    """Messages fit whatever the lengths are; each image has its own result, in order."""
    limits = model_pb.Limits()
    limits.CopyFrom(LIMITS)
    limits.max_image_bytes = largest
    to = exchange(limits=limits)
    messages = put(to, lengths)
    if (last := to.end()) is not None:
        messages.append(last)
    for one in messages:
        assert one.ByteSize() <= limits.max_message_bytes
        assert 0 < len(one.request.images) <= 4
    order.shuffle(messages)
    found = []
    for one in messages:
        to.answer(answer(one))
        found += to.take()
    for length, got in zip(lengths, found, strict=True):
        assert (got.result.error is not None) == (length > largest)
        if length <= largest:
            assert got.result.predictions[0].probability == length
    to.close()


def test_results_wait_for_those_before_them() -> None:
    """Nothing can be taken until the first message is answered; then all that follow it can."""
    to = exchange()
    first, second, third = put(to, [1] * 12)
    to.answer(answer(third))
    to.answer(answer(second))
    assert to.take() == []
    to.answer(answer(first))
    taken = [one.result.predictions[0].label for one in to.take()]
    assert taken == [f"{number}.{position}" for number in range(3) for position in range(4)]
    assert to.take() == []


def test_an_image_that_is_too_large_is_not_sent() -> None:
    """It keeps its place, has the server's own kind of error, and costs no bytes."""
    to = exchange()
    (message,) = put(to, [5, 20 * KILO + 1, 7, 8])
    assert [len(image) for image in message.request.images] == [5, 0, 7, 8]
    to.answer(answer(message))
    results = [one.result for one in to.take()]
    (error,) = filter(None, [one.error for one in results])
    assert results[1].error is error
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "IMAGE_TOO_LARGE")
    assert str(error) == "the image is 20001 bytes; the limit is 20000"


def test_a_failure_is_told_in_its_place() -> None:
    """The results of all images before a failed message come first."""
    to = exchange()
    first, second, third = put(to, [1] * 12)
    to.answer(failure(second.id))
    to.answer(answer(third))
    assert to.take() == []
    to.answer(answer(first))
    assert len(to.take()) == 4
    with pytest.raises(CallFailed, match="message 1") as caught:
        to.take()
    assert caught.value.code == "NOT_FOUND"


def test_a_missing_answer_is_told() -> None:
    """A stream that ends well with images unanswered is an error, not a short list."""
    to = exchange()
    put(to, [1] * 8)
    with pytest.raises(CallFailed, match="8 images unanswered"):
        to.close()


@pytest.mark.parametrize(("limit", "value"), [("MOST_IMAGES", 8), ("MOST_BYTES", 800)])
def test_there_is_room_for_so_much(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """When the bound of images or of bytes is reached there is no room until some are taken."""
    monkeypatch.setattr(exchanges, limit, value)
    to = exchange()
    (first,) = put(to, [100] * 4)
    assert to.has_room
    (second,) = put(to, [100] * 4)
    assert not to.has_room
    to.answer(answer(second))
    to.take()
    assert not to.has_room
    to.answer(answer(first))
    assert not to.has_room
    to.take()
    assert to.has_room
