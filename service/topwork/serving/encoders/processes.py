"""Encoder with a process per core: no interpreter lock is shared, and a crash ends one process."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from topwork.bundle.manifest import BackboneInfo
from topwork.limits import InputLimits
from topwork.runtime.agreement import least
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.serving.encoders.core_choice import CoreChoice
from topwork.serving.encoders.encoder import Check, Encoded, Item, Result
from topwork.serving.encoders.encoder_process import EncoderProcess
from topwork.serving.encoders.messages import Load, Loaded, frame
from topwork.serving.encoders.process_pool import MOST_GROWTH, Pending, ProcessPool

LOADS = 4
"""Raising it loads a backbone into more processes at once, each with a copy in this one."""


@dataclass(slots=True)
class _Loaded:
    """Backbone of all processes."""

    info: BackboneInfo
    model: Callable[[], bytes]
    choice: CoreChoice
    check: Check
    loads: int = 1


class ProcessEncoder(ProcessPool[EncoderProcess, _Loaded]):
    """See Encoder. The first process has a session on all cores, too, for single images."""

    def __init__(
        self,
        *,
        provider: Provider,
        cores: int,
        limits: InputLimits,
        log_format: Format,
        most_growth: int = MOST_GROWTH,
    ) -> None:
        super().__init__(
            [
                EncoderProcess(
                    self,
                    f"topwork-encoder-{number}",
                    provider=provider,
                    limits=limits,
                    log_format=log_format,
                    most_growth=most_growth,
                )
                for number in range(cores)
            ]
        )
        self._cores = cores
        self._backbones: dict[str, _Loaded] = {}
        self._loading = asyncio.Lock()

    async def load(self, info: BackboneInfo, model: Callable[[], bytes]) -> Check:
        """See Encoder. Raises ConnectionError if no process lives."""
        async with self._loading:
            if (known := self._backbones.get(info.digest)) is not None:
                known.loads += 1
                return known.check
            content = await asyncio.to_thread(model)
            ready = list(self._ready())
            try:
                # The first before the others, which would disturb its measurement.
                loaded = await self._load_all(info, content, ready[:1])
                for begin in range(1, len(ready), LOADS):
                    loaded += await self._load_all(info, content, ready[begin : begin + LOADS])
            except BaseException:
                self._unload_from(ready, info.digest)
                raise
            if not loaded:
                raise ConnectionError(errno.ECONNREFUSED, "no encoder process is running")
            choice = CoreChoice(info.name, loaded[0].one_core, loaded[0].all_cores)
            check = Check(
                agreement=least(each.check.agreement for each in loaded),
                provider=loaded[0].check.provider,
            )
            self._backbones[info.digest] = _Loaded(info, model, choice, check)
            return check

    def unload(self, digest: str) -> None:
        """See Encoder."""
        backbone = self._backbones[digest]
        backbone.loads -= 1
        if not backbone.loads:
            del self._backbones[digest]
            self._unload_from(self._processes, digest)

    def submit(self, item: Item, *, present: int) -> None:
        """See Encoder."""
        backbone = self._backbones[item.backbone]
        wide = backbone.choice.wide(present)
        self._submit(Pending(item, backbone, wide=wide, single=present == 1))

    async def prepare(self, process: EncoderProcess) -> None:
        """See Owner. Raises the errors of a load, which end the process."""
        async with self._loading:
            for digest, backbone in list(self._backbones.items()):
                content = await asyncio.to_thread(backbone.model)
                cores = self._cores_of(process)
                framed = await _framed(backbone.info, content, cores)
                loaded = await process.load(digest, framed)
                if cores > 1:
                    seconds = loaded.one_core, loaded.all_cores
                    backbone.choice = CoreChoice(backbone.info.name, *seconds)
                if digest not in self._backbones:  # unloaded meanwhile
                    process.unload(digest)

    def delivered(self, result: Result) -> None:
        """See Owner."""
        pending = self._pending[result.id]
        if pending.single and isinstance(result, Encoded):
            pending.backbone.choice.measured(pending.wide, result.computed)
        super().delivered(result)

    def _begin(self, process: EncoderProcess, pending: Pending[EncoderProcess, _Loaded]) -> None:
        process.encode(pending.item, wide=pending.wide)

    async def _load_all(
        self, info: BackboneInfo, model: bytes, processes: list[EncoderProcess]
    ) -> list[Loaded]:
        """Load a backbone into processes; return the answers of those that do not end meanwhile.

        Raises Corrupt and NotReady.
        """
        framed = {
            cores: await _framed(info, model, cores)
            for cores in set(map(self._cores_of, processes))
        }
        results = await asyncio.gather(
            *(process.load(info.digest, framed[self._cores_of(process)]) for process in processes),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, ConnectionError):
                raise result
        return [result for result in results if isinstance(result, Loaded)]

    def _cores_of(self, process: EncoderProcess) -> int:
        """Return the cores of a process's largest session."""
        return self._cores if process is self._processes[0] else 1

    def _unload_from(self, processes: Sequence[EncoderProcess], digest: str) -> None:
        for process in processes:
            process.unload(digest)


async def _framed(info: BackboneInfo, model: bytes, cores: int) -> tuple[bytes, bytes]:
    return await asyncio.to_thread(frame, Load(info=info, model=model, cores=cores))
