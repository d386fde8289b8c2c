"""Backbones in the encoder, shared by models; where one is off, its fp32 twin replaces it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.runtime.agreement import facts, is_off, replacement
from topwork.serving.encoders.encoder import Check, Encoder
from topwork.telemetry import Telemetry

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class LoadedBackbone:
    """Backbone in the encoder, which unloads it when this object is garbage collected."""

    info: BackboneInfo
    """Of the graph that runs: the stored backbone, or its fp32 twin."""
    agreement: float | None
    """Of the stored backbone on this host; see ``topwork.runtime.agreement``."""


class Backbones:
    """Owner of the loaded backbones. All calls belong to one event loop."""

    def __init__(self, repository: Repository, encoder: Encoder, telemetry: Telemetry) -> None:
        self._repository = repository
        self._encoder = encoder
        self._telemetry = telemetry
        self._loaded: weakref.WeakValueDictionary[str, LoadedBackbone] = (
            weakref.WeakValueDictionary()
        )
        self._lock = asyncio.Lock()

    async def get(self, manifest: Manifest, threads: Executor | None) -> LoadedBackbone:
        """Return a revision's backbone, loaded if necessary; files are read in ``threads``.

        Raises the errors of ``Encoder.load``.
        """
        backbone = self._loaded.get(manifest.backbone)
        if backbone is None:
            async with self._lock:  # or two requests would load it twice
                backbone = self._loaded.get(manifest.backbone)
                if backbone is None:
                    loop = asyncio.get_running_loop()
                    read = loop.run_in_executor(threads, self._repository.backbone, manifest)
                    backbone = await self._load(await read)
                    self._loaded[manifest.backbone] = backbone
        return backbone

    async def _load(self, info: BackboneInfo) -> LoadedBackbone:
        if not info.has_graph:
            return LoadedBackbone(info, None)
        check = await self._load_graph(info)
        found, used, twin_error = check.agreement, info, ""
        if (twin := replacement(info, found)) is not None:
            try:
                await self._load_graph(twin)
            except Corrupt as error:
                twin_error = str(error)
            except BaseException:
                self._encoder.unload(info.digest)
                raise
            else:
                self._encoder.unload(info.digest)
                used = twin
        if is_off(found):
            known = facts(info, used, found, provider=check.provider, twin_error=twin_error)
            log.warning("backbone is off", **known)
        backbone = LoadedBackbone(used, found)
        labels = info.name, info.digest[:12], used.precision
        if found is not None:
            self._telemetry.agreement.labels(*labels).set(found)
        unload_with(backbone, self._encoder, used.digest)
        _call_with(backbone, partial(_remove_agreement, self._telemetry, labels))
        return backbone

    def _load_graph(self, info: BackboneInfo) -> Awaitable[Check]:
        return self._encoder.load(info, partial(self._repository.backbone_model, info.digest))


def unload_with(backbone: LoadedBackbone, encoder: Encoder, digest: str) -> None:
    """Unload ``digest`` when ``backbone`` is garbage collected."""
    _call_with(backbone, partial(encoder.unload, digest))


def _call_with(backbone: LoadedBackbone, call: Callable[[], None]) -> None:
    # Garbage collection may run in any thread.
    loop = asyncio.get_running_loop()
    weakref.finalize(backbone, _call_soon, loop, call).atexit = False


def _remove_agreement(telemetry: Telemetry, labels: tuple[str, ...]) -> None:
    with suppress(KeyError):  # it could not be checked
        telemetry.agreement.remove(*labels)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the event loop is closed
        loop.call_soon_threadsafe(call)
