"""Encoder process beside a GPU: only decodes, into memory that it shares with the server.

It knows no backbones: each request has the preprocess spec. It imports no ONNX Runtime.
"""

from __future__ import annotations

import socket
from multiprocessing.connection import Connection

import msgspec

from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits
from topwork.runtime.relay import Format
from topwork.serving.encoders.decoding import Decoded, decode
from topwork.serving.encoders.messages import (
    DECODER_REQUESTS,
    Cancel,
    Decode,
    DecoderRequest,
    Ready,
    Written,
)
from topwork.serving.encoders.process_loop import ProcessLoop, connect
from topwork.serving.encoders.slots import Slots


def run(parent: Connection, limits: InputLimits, log_format: Format, most_growth: int) -> None:
    """Decode the items that arrive through the pipe ``parent``; exit when it closes."""
    DecoderLoop(connect(parent, log_format), limits, most_growth).run()


class DecoderLoop(ProcessLoop[Decode, DecoderRequest]):
    """Loop of a process that only decodes."""

    def __init__(self, link: socket.socket, limits: InputLimits, most_growth: int) -> None:
        super().__init__(link, DECODER_REQUESTS, most_growth)
        self._slots = Slots.received(link)
        self._limits = limits
        self._send(Ready())

    def _work(self, task: Decode) -> None:
        decoded = decode(task.item, task.spec, self._limits)
        if isinstance(decoded, Decoded):
            written = Written(
                id=task.item.id,
                started=decoded.started,
                decoded=decoded.seconds,
                region=decoded.region,
            )
            array = decoded.prepared
            if isinstance(task.spec, PreprocessSpec):
                self._slots.pixels(task.slot, task.spec.crop)[:] = array
            else:
                written = msgspec.structs.replace(
                    written, array=array.tobytes(), dtype=array.dtype.str, shape=array.shape
                )
            self._send(written)
        else:
            self._send(decoded)

    def _take(self, message: DecoderRequest) -> None:
        match message:
            case Decode():
                self._waiting.append(message)
            case Cancel():
                self._cancel(message.id)
