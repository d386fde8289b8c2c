"""Conversion of inputs: encoded images, texts, audio, or embeddings of the client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from topwork.errors import InvalidInput
from topwork.inputs.audio import SentAudio
from topwork.inputs.embeddings import SentEmbedding
from topwork.inputs.kinds import AnyInput
from topwork.inputs.text import SentText
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import input_pb2 as input_pb


class Inputs(Sequence[AnyInput]):
    """Inputs of a message, each converted when it is read: there may be too many of them."""

    def __init__(self, messages: Sequence[input_pb.Input]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[AnyInput]:
        for number, message in enumerate(self._messages):
            yield from_input(message, field=f"inputs[{number}]")

    @overload
    def __getitem__(self, place: int) -> AnyInput: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[AnyInput]: ...

    def __getitem__(self, place: int | slice) -> AnyInput | Sequence[AnyInput]:
        """Return an input, or several. Raises InvalidInput."""
        if isinstance(place, slice):
            return Inputs(self._messages[place])
        return from_input(self._messages[place], field=f"inputs[{place}]")


def count(request: classify_pb.ClassifyRequest) -> int:
    """Return the number of inputs of a request, of both fields together."""
    return len(request.images) + len(request.inputs)


def from_classify(request: classify_pb.ClassifyRequest) -> Sequence[AnyInput]:
    """Return the inputs of a request. Raises InvalidInput if it has images and others."""
    if request.images and request.inputs:
        raise InvalidInput(
            f"the request has {len(request.images)} images and {len(request.inputs)} inputs; it "
            "must have one of the two",
            field="inputs",
        )
    return Inputs(request.inputs) if request.inputs else request.images


def one_of(
    image: bytes, message: input_pb.Input, *, given: bool, name: str, field: str
) -> AnyInput:
    """Return the input of a message with an image in the field ``name``, or an ``input``.

    ``given``: there is an ``input``. Raises InvalidInput if there are both.
    """
    if not given:
        return image
    if image:
        raise InvalidInput(
            f"{field} has {name} and input; it must have one of the two", field=field
        )
    return from_input(message, field=f"{field}.input")


def from_input(message: input_pb.Input, *, field: str) -> AnyInput:
    """Return an input. Raises InvalidInput if it is empty."""
    match message.WhichOneof("input"):
        case "embedding":
            return SentEmbedding(message.embedding.values, message.embedding.space)
        case "image":
            return message.image
        case "text":
            return SentText(message.text.encode())
        case "audio":
            return SentAudio(message.audio)
        case _:
            raise InvalidInput(f"{field} is empty", field=field)
