"""Encoder for a GPU: processes decode, and this process embeds what they have decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from topwork.bundle.manifest import BackboneInfo
from topwork.limits import InputLimits
from topwork.runtime.relay import Format
from topwork.serving.encoders.backbone import Backbone
from topwork.serving.encoders.decoder_process import DecoderProcess
from topwork.serving.encoders.decoding import Decoded
from topwork.serving.encoders.encoder import Check, Deliver, Item, Result
from topwork.serving.encoders.feeder import Feeder, Work
from topwork.serving.encoders.mailbox import Mailbox
from topwork.serving.encoders.pipeline import Embeddable
from topwork.serving.encoders.process_pool import MOST_GROWTH, Pending, ProcessPool

log = structlog.get_logger(__name__)

JOIN_SECONDS = 5.0
"""Raising it lets aclose() wait longer for the feeder, for example on a GPU that hangs."""

OpenBackbone = Callable[[BackboneInfo, bytes], Backbone]
"""Loads and warms a backbone. Raises Corrupt and NotReady."""


@dataclass(slots=True)
class _Loaded:
    """Backbone in memory."""

    backbone: Backbone
    loads: int = 0


class GpuEncoder(ProcessPool[DecoderProcess, _Loaded]):
    """See Encoder. Processes know no backbones: the GPU has one context, in this process.

    Pixels come through shared memory. An item takes a credit until it is decoded: it waits for its
    micro-batch without one, while its process has a slot for another.
    """

    def __init__(
        self,
        *,
        open_backbone: OpenBackbone,
        cores: int,
        limits: InputLimits,
        log_format: Format,
        most_growth: int = MOST_GROWTH,
    ) -> None:
        super().__init__(
            [
                DecoderProcess(
                    self,
                    f"topwork-encoder-{number}",
                    limits=limits,
                    log_format=log_format,
                    most_growth=most_growth,
                )
                for number in range(cores)
            ]
        )
        self._open_backbone = open_backbone
        self._backbones: dict[str, _Loaded] = {}
        self._loading = asyncio.Lock()
        self._feeder: Feeder | None = None

    async def start(self, deliver: Deliver, on_credit: Callable[[], None]) -> None:
        """See Encoder."""
        mailbox = Mailbox(self._embedded, asyncio.get_running_loop())
        self._feeder = Feeder(mailbox.post)
        self._feeder.start()
        await super().start(deliver, on_credit)

    async def aclose(self) -> None:
        """See Encoder. Joins the threads.

        A thread that returns from native code after the interpreter's end aborts the process.
        """
        await super().aclose()
        await asyncio.to_thread(self._join)

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """See Encoder."""
        async with self._loading:
            loaded = self._backbones.get(info.digest)
            if loaded is None:
                opened = await asyncio.to_thread(lambda: self._open_backbone(info, model()))
                loaded = self._backbones[info.digest] = _Loaded(opened)
            loaded.loads += 1
            return loaded.backbone.check

    def unload(self, digest: str) -> None:
        """See Encoder."""
        loaded = self._backbones[digest]
        loaded.loads -= 1
        if not loaded.loads:
            del self._backbones[digest]

    def submit(self, item: Item, *, present: int) -> None:  # noqa: ARG002  # part of the protocol
        """See Encoder."""
        self._submit(Pending(item, self._backbones[item.backbone]))

    def decoded(self, decoded: Decoded, release: Callable[[], None]) -> None:
        """See DecoderOwner."""
        assert self._feeder is not None, "start() comes first"
        pending = self._pending[decoded.item.id]
        embeddable = Embeddable(pending.backbone.backbone, decoded)
        self._feeder.put(Work(embeddable, lambda: pending.cancelled, release))
        self.has_capacity()

    def _begin(self, process: DecoderProcess, pending: Pending[DecoderProcess, _Loaded]) -> None:
        process.decode(pending.item, pending.backbone.backbone.info.preprocess)

    def _embedded(self, result: Result) -> None:
        if result.id in self._pending:  # else it ended when the encoder was closed
            self._end(result)

    def _join(self) -> None:
        assert self._feeder is not None, "start() comes first"
        for loaded in self._backbones.values():  # first, since the feeder may wait for one
            loaded.backbone.close()
        if not self._feeder.close(JOIN_SECONDS):
            log.warning("threads still at work", threads=["feeder"])
