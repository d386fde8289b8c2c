"""Encoder process with backbones, seen from the server."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Protocol

from topwork.errors import Corrupt, NotReady
from topwork.limits import InputLimits
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.serving.encoders import process_main
from topwork.serving.encoders.encoder import Item
from topwork.serving.encoders.item_process import ItemProcess, Owner
from topwork.serving.encoders.messages import (
    RESPONSES,
    Encode,
    Loaded,
    NotLoaded,
    Response,
    Unload,
)


class EncoderOwner(Owner, Protocol):
    """Owner of a process that has backbones."""

    async def prepare(self, process: EncoderProcess) -> None:
        """Load the backbones into a process that has started; it is ready then."""


class EncoderProcess(ItemProcess[Response]):
    """Process that decodes and embeds its items."""

    def __init__(
        self,
        owner: EncoderOwner,
        name: str,
        *,
        provider: Provider,
        limits: InputLimits,
        log_format: Format,
        most_growth: int,
    ) -> None:
        super().__init__(
            owner,
            name,
            partial(process_main.run, provider=provider),
            RESPONSES,
            limits=limits,
            log_format=log_format,
            most_growth=most_growth,
        )
        self._preparer = owner
        self._loads: dict[str, asyncio.Future[Loaded]] = {}

    def encode(self, item: Item, *, wide: bool) -> None:
        """Hand an item over."""
        self.items[item.id] = item
        self._send(Encode(item=item, wide=wide))

    async def load(self, digest: str, framed: tuple[bytes, bytes]) -> Loaded:
        """Load a backbone by a Load message, which is framed already: it may be large.

        Raises Corrupt, NotReady, and ConnectionError if the process ends meanwhile.
        """
        if self._transport is None:
            raise _connection_ended()
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._loads[digest] = future
        try:
            self._transport.writelines(framed)
            return await future
        finally:
            self._loads.pop(digest, None)

    def unload(self, digest: str) -> None:
        """Free a backbone."""
        self._send(Unload(digest=digest))

    async def _prepare(self) -> None:
        await self._preparer.prepare(self)

    def _disconnect(self) -> None:
        super()._disconnect()
        for future in self._loads.values():
            if not future.done():
                future.set_exception(_connection_ended())

    def _received(self, response: Response) -> None:
        if isinstance(response, Loaded | NotLoaded):
            future = self._loads.get(response.digest)
            if future is None or future.done():
                return
            if isinstance(response, Loaded):
                future.set_result(response)
            else:
                kind = NotReady if response.provider_missing else Corrupt
                future.set_exception(kind(response.message))
        elif self._is_awaited(response.id):
            self._owner.delivered(response)


def _connection_ended() -> ConnectionError:
    return ConnectionError(errno.ECONNRESET, "the encoder process has ended")
