"""Messages between the server and its encoder processes, and their framing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.image import Region
from topwork.inputs.spec import InputSpec
from topwork.inputs.specs import decode
from topwork.serving.encoders.encoder import Check, Encoded, Failed, Item, Refused

M = TypeVar("M")


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a backbone; with ``cores`` above 1 with a session on all of them, too."""

    info: BackboneInfo
    model: bytes
    cores: int


class Unload(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Free a backbone."""

    digest: str


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Encode an item, on all cores if ``wide``."""

    item: Item
    wide: bool


class Decode(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Decode an item by a spec: an image into a slot of the shared memory."""

    item: Item
    spec: InputSpec
    slot: int


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Drop an item unless its run has begun."""

    id: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Backbone in memory, with the seconds of its runs, see Backbone.seconds, and its check."""

    digest: str
    one_core: float
    all_cores: float
    check: Check


class NotLoaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Backbone that cannot be loaded."""

    digest: str
    message: str
    provider_missing: bool
    """True for NotReady, False for Corrupt."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sign of a process that has started and takes items."""


class Written(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Item whose pixels are in its slot, or whose array is here."""

    id: int
    started: float
    """Start of decoding (time.perf_counter())."""
    decoded: float
    """Seconds of decoding and preprocessing."""
    region: Region
    """The part of the upright image that the pixels show."""
    array: bytes = b""
    """Array of an input that is no image."""
    dtype: str = ""
    shape: tuple[int, ...] = ()


Request = Load | Unload | Encode | Cancel
Response = Loaded | NotLoaded | Encoded | Refused | Failed
DecoderRequest = Decode | Cancel
DecoderResponse = Ready | Written | Refused | Failed
Message = Request | Response | DecoderRequest | DecoderResponse

REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request, dec_hook=decode)
RESPONSES: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)
DECODER_REQUESTS: msgspec.msgpack.Decoder[DecoderRequest] = msgspec.msgpack.Decoder(
    DecoderRequest, dec_hook=decode
)
DECODER_RESPONSES: msgspec.msgpack.Decoder[DecoderResponse] = msgspec.msgpack.Decoder(
    DecoderResponse
)
_ENCODER = msgspec.msgpack.Encoder()

_HEADER = 4
"""Bytes of the length before each message, big-endian."""


def frame(message: Message) -> tuple[bytes, bytes]:
    """Return the header and the body of a message."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(_HEADER, "big"), body


class Unframer(Generic[M]):
    """Reads messages of one type from a stream of bytes."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Yield the messages that ``data`` completes. Raises msgspec.DecodeError."""
        self._buffer += data
        while len(self._buffer) >= _HEADER:
            end = _HEADER + int.from_bytes(self._buffer[:_HEADER], "big")
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER:end])
            del self._buffer[:end]
            yield self._decoder.decode(body)
