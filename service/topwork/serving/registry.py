"""Registry of the models in memory: snapshots, and hot reload of new revisions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

from topwork.bundle.draft import FILE as DRAFT
from topwork.bundle.draft import Current, Draft, not_ready
from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, NotReady, Unavailable
from topwork.serving.backbones import Backbones, LoadedBackbone
from topwork.serving.encoders.encoder import Encoder
from topwork.serving.head import HeadLoader, LoadedHead
from topwork.serving.lru_cache import LruCache
from topwork.telemetry import Telemetry

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_POINTERS = (SERVING, DRAFT)

POLL_SECONDS = 0.2
"""Interval of polling serving.json and draft.json; raising it delays the hot reload."""

LONGEST_POLL_SECONDS = 0.8
"""Interval with very many models; above 1 s, revisions would not serve within a second."""

POLL_SHARE = 0.004
"""Share of a core for polling; lowering it makes polling of many models less frequent."""

HEAD_BYTES = 10**9
"""Bytes of all heads in memory, such as 1,000 large heads of 0.9 MB."""

WARM_HEADS = 16
"""Number of heads loaded at the start; others are loaded by the first request, in about 2 ms."""

LOAD_THREADS = 8
"""Number of parallel loads; they mostly wait for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Revision in memory. Immutable: a request that holds it is not affected by a hot reload."""

    manifest: Manifest
    backbone: LoadedBackbone
    head: LoadedHead


class Registry:
    """Owner of the snapshots, which loads the new revision before it drops the old one.

    Manifests and backbones of the serving revisions are always in memory; models share backbones.
    Heads are loaded on demand into an LRU cache of ``head_bytes``. No request waits for the load of
    another revision. All state belongs to one event loop; files are read in threads.
    """

    def __init__(
        self,
        repository: Repository,
        encoder: Encoder,
        *,
        telemetry: Telemetry,
        head_bytes: int = HEAD_BYTES,
    ) -> None:
        self._repository = repository
        self._telemetry = telemetry
        self._serving: dict[str, _Serving] = {}
        self._drafts: dict[str, Draft] = {}
        self._snapshots: LruCache[Snapshot] = LruCache(
            head_bytes, weight_of=lambda snapshot: snapshot.head.size
        )
        self._heads = HeadLoader()
        self._backbones = Backbones(repository, encoder, telemetry)
        self._swaps: dict[str, asyncio.Task[None]] = {}
        self._stamps: dict[str, Hashable] = {}
        self._poll_lock = asyncio.Lock()
        self._pause = max(POLL_SECONDS, repository.storage.poll_seconds)
        self._threads: ThreadPoolExecutor | None = None
        self._watcher: asyncio.Task[None] | None = None
        telemetry.watch("topwork_models", "Models that serve.", lambda: len(self._serving))
        telemetry.watch("topwork_heads", "Heads in memory.", self.heads_in_memory)

    async def start(self) -> None:
        """Load the serving revisions with the first models' heads, then watch for new revisions.

        Raises NotReady if the requested provider does not work.
        """
        self._threads = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="load")
        await self.refresh()
        await asyncio.gather(*(self._warm(model) for model in self.models()[:WARM_HEADS]))
        self._watcher = asyncio.create_task(self._watch(), name="registry")

    async def aclose(self) -> None:
        """Stop watching, and release the threads."""
        tasks = [*self._swaps.values(), *([self._watcher] if self._watcher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def models(self) -> list[str]:
        """Return the names of the serving models, sorted."""
        return sorted(self._serving)

    def drafts(self) -> list[str]:
        """Return the names of the models that do not serve yet, sorted."""
        return sorted(self._drafts)

    def unusable(self) -> list[str]:
        """Return the names of the models without a loadable revision or draft, sorted."""
        return sorted(self._stamps.keys() - self._serving.keys() - self._drafts.keys())

    def serving(self, model: str) -> Manifest:
        """Return the manifest of the serving revision. Raises NotFound, NotReady for a draft."""
        return self._find(model).manifest

    def current(self, model: str) -> Current:
        """Return the manifest of the serving revision, or the draft. Raises NotFound."""
        return self._drafts[model] if model in self._drafts else self.serving(model)

    def backbone(self, model: str) -> LoadedBackbone:
        """Return the backbone of the serving revision. Raises NotFound, NotReady for a draft."""
        return self._find(model).backbone

    def knows(self, model: str, revision: int) -> bool:
        """Return True if ``revision`` or a later revision serves here."""
        return model in self._serving and self._serving[model].manifest.revision >= revision

    def heads_in_memory(self) -> int:
        """Return the number of heads in memory."""
        return len(self._snapshots)

    async def snapshot(self, model: str, revision: int = 0) -> Snapshot:
        """Return the snapshot of a revision, loaded if necessary; 0 is the serving revision.

        Raises NotFound, NotReady for a draft, Corrupt if it is damaged, and Unavailable if it
        cannot be read now.
        """
        key = model, revision or self.serving(model).revision
        try:
            return await self._snapshots.get(key, partial(self._load_revision, *key))
        except OSError as error:  # a file system that is temporarily unavailable
            log.warning("repository cannot be read", model=model, error=str(error))
            raise Unavailable(
                f"models/{model}/revisions/{key[1]} cannot be read now: {error.strerror}"
            ) from error

    async def refresh(self, model: str | None = None) -> None:
        """Poll now and return after the hot reloads, of ``model`` only if it is not None.

        If a revision cannot be loaded, an error is logged and the previous revision keeps serving.
        """
        await self._poll(model)
        swaps = [swap for name, swap in self._swaps.items() if model in {None, name}]
        await asyncio.gather(*map(asyncio.shield, swaps))

    def _find(self, model: str) -> _Serving:
        try:
            return self._serving[model]
        except KeyError:
            if model in self._drafts:
                raise not_ready(self._drafts[model]) from None
            name = f"models/{model}"
            raise NotFound(f"there is no model {name!r}", kind="model", resource=name) from None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self._poll()
            except OSError as error:  # a file system that is temporarily unavailable
                log.warning("repository cannot be read", error=str(error))

    async def _poll(self, only: str | None = None) -> None:
        """Start the hot reload of each model whose serving.json or draft.json changed.

        ``only`` is the name of the only model to look at; None: all models.
        """
        async with self._poll_lock:
            stamps = await self._in_thread(self._read_stamps, only)
            known = self._stamps.keys() if only is None else self._stamps.keys() & {only}
            for model in known - stamps.keys():
                self._remove(model)
            for model, stamp in stamps.items():
                if stamp is None or stamp == self._stamps.get(model) or model in self._swaps:
                    continue
                swap = asyncio.create_task(self._swap(model, stamp), name=f"swap {model}")
                self._swaps[model] = swap
                swap.add_done_callback(partial(self._swaps.pop, model))

    def _read_stamps(self, only: str | None) -> dict[str, Hashable | None]:
        start = time.thread_time()
        try:
            stamps = self._repository.stamps(_POINTERS, self._stamps, only=only)
        except FileNotFoundError:
            if self._stamps:  # the repository is unavailable; a new repository has no directory
                raise
            stamps = {}
        if only is None:
            cost = time.thread_time() - start
            pause = min(max(POLL_SECONDS, cost / POLL_SHARE), LONGEST_POLL_SECONDS)
            self._pause = max(pause, self._repository.storage.poll_seconds)
        return stamps

    async def _swap(self, model: str, stamp: Hashable) -> None:
        """Hot-reload the serving revision, or the draft. Raises NotReady at the start only."""
        starting = self._watcher is None
        try:
            manifest = await self._in_thread(self._read_current, model)
            known = self._serving.get(model)
            if isinstance(manifest, Draft):  # not of the model that served under this name
                self._remove(model)
                self._drafts[model] = manifest
            elif known is None or known.manifest != manifest:
                serving = _Serving(manifest=manifest, backbone=await self._backbone(manifest))
                # At the start there is no previous revision that could serve instead of a bad head.
                snapshot = None if starting else await self._load(serving)
                self._snapshots.drop(model)  # requests in flight keep their snapshots
                self._serving[model] = serving
                self._drafts.pop(model, None)
                if snapshot is not None:
                    self._snapshots.put((model, manifest.revision), snapshot)
                self._telemetry.swaps.inc()
                self._telemetry.models.serve(manifest)
                log.info("serving", model=model, revision=manifest.revision)
        except ConnectionError as error:  # no encoder process runs: the next poll retries
            log.warning("backbone cannot be loaded", model=model, error=str(error))
            return
        except OSError as error:  # a temporarily unavailable file system: the next poll retries
            log.warning("repository cannot be read", model=model, error=str(error))
            return
        except Exception as error:  # the other models must continue
            if isinstance(error, NotReady) and starting:
                raise
            log.error("revision cannot be loaded", model=model, error=repr(error))
        self._stamps[model] = stamp

    def _read_current(self, model: str) -> Current:
        current = self._repository.current(model)
        # A new revision must be intact, including its metrics.
        if isinstance(current, Manifest) and self._watcher is not None:
            self._repository.metrics(current)
        return current

    def _remove(self, model: str) -> None:
        self._snapshots.drop(model)
        self._stamps.pop(model, None)
        self._drafts.pop(model, None)
        if self._serving.pop(model, None) is not None:
            self._telemetry.models.forget(model)
            log.info("removed", model=model)

    async def _warm(self, model: str) -> None:
        try:
            await self.snapshot(model)
        except Exception as error:  # requests for this model get the error; other models serve
            log.error("head cannot be loaded", model=model, error=repr(error))

    async def _load_revision(self, model: str, revision: int) -> Snapshot:
        serving = self._find(model)
        if revision != serving.manifest.revision:
            manifest = await self._in_thread(self._repository.manifest, model, revision)
            check_may_serve(manifest)
            serving = _Serving(manifest=manifest, backbone=await self._backbone(manifest))
        return await self._load(serving)

    async def _load(self, serving: _Serving) -> Snapshot:
        head = await self._in_thread(self._load_head, serving.manifest, serving.backbone.info.width)
        return Snapshot(manifest=serving.manifest, backbone=serving.backbone, head=head)

    def _load_head(self, manifest: Manifest, width: int) -> LoadedHead:
        content = self._repository.head(manifest)
        try:
            return self._heads.load(
                content,
                width=width,
                labels=len(manifest.labels),
                unknown=manifest.chosen.unknown_threshold is not None,
            )
        except Corrupt as error:
            name = f"models/{manifest.model}/revisions/{manifest.revision}"
            raise Corrupt(f"{name} cannot be used: {error}") from error

    async def _backbone(self, manifest: Manifest) -> LoadedBackbone:
        return await self._backbones.get(manifest, self._threads)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(call, *args, **kwargs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    """Serving revision of a model, with or without its head in memory."""

    manifest: Manifest
    backbone: LoadedBackbone
