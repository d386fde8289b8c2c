"""Encoder process that only decodes, seen from the server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
from topwork.limits import InputLimits
from topwork.runtime.relay import Format
from topwork.serving.encoders import decoder_main
from topwork.serving.encoders.decoding import Decoded
from topwork.serving.encoders.encoder import Failed, Item, Refused
from topwork.serving.encoders.item_process import ItemProcess, Owner
from topwork.serving.encoders.messages import (
    DECODER_RESPONSES,
    Decode,
    DecoderResponse,
    Ready,
    Written,
)
from topwork.serving.encoders.slots import Slots


class DecoderOwner(Owner, Protocol):
    """Owner of a process that only decodes."""

    def decoded(self, decoded: Decoded, release: Callable[[], None]) -> None:
        """Take a decoded item. Its pixels lie in a slot until ``release``, called in any thread."""


class DecoderProcess(ItemProcess[DecoderResponse]):
    """Process that decodes its items, images into slots, which the server assigns.

    Every process that is started has slots of its own. Those of a process that has ended live on
    while their pixels are in use.
    """

    def __init__(
        self,
        owner: DecoderOwner,
        name: str,
        *,
        limits: InputLimits,
        log_format: Format,
        most_growth: int,
    ) -> None:
        super().__init__(
            owner,
            name,
            decoder_main.run,
            DECODER_RESPONSES,
            limits=limits,
            log_format=log_format,
            most_growth=most_growth,
        )
        self._decoder_owner = owner
        self._slots: Slots | None = None
        self._assigned: dict[int, Decode] = {}
        """Requests without a response, by item."""
        self._imported = asyncio.Event()

    def capacity(self, most: int) -> int:
        """See ItemProcess."""
        return 0 if self._slots is None else min(super().capacity(most), len(self._slots.free))

    def decode(self, item: Item, spec: InputSpec) -> None:
        """Hand an item over."""
        assert self._slots is not None, "the process has capacity"
        self.items[item.id] = item
        request = Decode(item=item, spec=spec, slot=self._slots.free.popleft())
        self._assigned[item.id] = request
        self._send(request)

    def _share(self, link: socket.socket) -> None:
        self._slots = Slots.shared(link)
        self._assigned.clear()
        self._imported.clear()

    async def _prepare(self) -> None:
        await self._imported.wait()

    def _received(self, response: DecoderResponse) -> None:
        if isinstance(response, Ready):
            self._imported.set()
        elif (request := self._assigned.pop(response.id, None)) is not None:
            self._answered(request, response)

    def _answered(self, request: Decode, response: Written | Refused | Failed) -> None:
        assert self._slots is not None, "the process has got a request"
        release = partial(self._release, self._slots, request.slot, asyncio.get_running_loop())
        if not self._is_awaited(response.id):
            release()
        elif isinstance(response, Written):
            decoded = Decoded(
                request.item,
                self._array(request, response),
                response.started,
                response.decoded,
                response.region,
            )
            self._decoder_owner.decoded(decoded, release)
        else:
            release()
            self._owner.delivered(response)

    def _array(self, request: Decode, response: Written) -> NDArray[Any]:
        assert self._slots is not None, "the process has got a request"
        if isinstance(request.spec, PreprocessSpec):
            return self._slots.pixels(request.slot, request.spec.crop)
        return np.frombuffer(response.array, response.dtype).reshape(response.shape)

    def _release(self, slots: Slots, slot: int, loop: asyncio.AbstractEventLoop) -> None:
        slots.free.append(slot)
        if len(slots.free) == 1:  # items may wait for it
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._owner.has_capacity)
