"""Registry of the models in memory: snapshots, and their hot reload."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

from topwork.bundle.manifest import Manifest, check_may_serve
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, NotReady, Unavailable
from topwork.runtime.backend import check_provider
from topwork.runtime.providers import Provider
from topwork.serving.change_detection import FileStamp, read_marks
from topwork.serving.encoders.backbone import Backbone
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.head import HeadLoader, LoadedHead
from topwork.serving.lru_cache import LruCache
from topwork.telemetry import Telemetry

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

POLL_SECONDS = 0.2
"""How often serving.json files are looked at, so how long another host's publication may take."""

LONGEST_POLL_SECONDS = 0.8
"""The same with very many models: they shall serve what is published within a second, too."""

POLL_SHARE = 0.004
"""Of a core: where looking costs more, it is done less often."""

HEAD_BYTES = 10**9
"""What the heads in memory may weigh together: 1,000 large ones (0.9 MB)."""

WARM_HEADS = 16
"""Models whose heads are loaded at the start; the first request loads another, in about 2 ms."""

LOADS = 8
"""Loads side by side; they mostly wait for a disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A revision in memory; immutable. Who holds one sees one revision, whatever is swapped."""

    manifest: Manifest
    backbone: Backbone
    head: LoadedHead


class Registry:
    """Owns the snapshots. Loads the new before it drops the old.

    What serves is always known, and its backbone in memory; models on the same one share it. Heads
    are loaded when they are first asked for and leave when all together pass ``head_bytes``, the
    least recently asked for first. Nobody waits for what another asked for. All state belongs to
    one event loop; files are read in threads.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        provider: Provider,
        cores: int,
        telemetry: Telemetry,
        head_bytes: int = HEAD_BYTES,
    ) -> None:
        self._repository = repository
        self._provider: Provider = provider
        self._cores = cores
        self._telemetry = telemetry
        self._serving: dict[str, _Serving] = {}
        self._held: LruCache[Snapshot] = LruCache(head_bytes, weigh=lambda one: one.head.size)
        self._heads = HeadLoader()
        self._backbones: weakref.WeakValueDictionary[str, Backbone] = weakref.WeakValueDictionary()
        self._opening = asyncio.Lock()
        self._swaps: dict[str, asyncio.Task[None]] = {}
        self._marks: dict[str, FileStamp] = {}
        self._looking = asyncio.Lock()
        self._pause = POLL_SECONDS
        self._threads: ThreadPoolExecutor | None = None
        self._watcher: asyncio.Task[None] | None = None
        telemetry.watch("topwork_models", "Models that can be asked.", lambda: len(self._serving))
        telemetry.watch("topwork_heads", "Heads in memory.", self.heads_in_memory)

    async def start(self) -> None:
        """Load what serves, of heads only the first models', then watch for new revisions.

        Raises NotReady if the provider that was asked for does not work.
        """
        check_provider(self._provider)
        self._threads = ThreadPoolExecutor(LOADS, thread_name_prefix="load")
        await self.refresh()
        await asyncio.gather(*(self._warm(model) for model in self.models()[:WARM_HEADS]))
        self._watcher = asyncio.create_task(self._watch(), name="registry")

    async def aclose(self) -> None:
        """Stop watching, close the backbones and release the threads."""
        tasks = [*self._swaps.values(), *([self._watcher] if self._watcher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for backbone in list(self._backbones.values()):
            await asyncio.to_thread(backbone.close)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def models(self) -> list[str]:
        """Return the names of the models that can be asked, sorted."""
        return sorted(self._serving)

    def unusable(self) -> list[str]:
        """Return the names of the models of which no revision could be loaded, sorted."""
        return sorted(self._marks.keys() - self._serving.keys())

    def serving(self, model: str) -> Manifest:
        """Return the manifest of the serving revision. Raises NotFound."""
        return self._find(model).manifest

    def knows(self, model: str, revision: int) -> bool:
        """Return whether ``revision`` or a later one serves here."""
        return model in self._serving and self._serving[model].manifest.revision >= revision

    def heads_in_memory(self) -> int:
        """Return how many heads are loaded."""
        return len(self._held)

    async def snapshot(self, model: str, revision: int = 0) -> Snapshot:
        """Return a revision's snapshot, loaded if it is not in memory; 0 is the serving one.

        Raises NotFound, Corrupt if it is damaged, and Unavailable if it cannot be read now.
        """
        key = model, revision or self.serving(model).revision
        try:
            return await self._held.get(key, partial(self._load_asked, *key))
        except OSError as error:  # a file system that is away for a moment
            log.warning("repository cannot be read", model=model, error=str(error))
            raise Unavailable(
                f"models/{model}/revisions/{key[1]} cannot be read now: {error.strerror}"
            ) from error

    async def refresh(self, model: str | None = None) -> None:
        """Look now, and return once what serves is swapped in; of ``model`` only, if one is named.

        A revision that cannot be loaded is logged and the one before it goes on serving.
        """
        await self._look()
        swaps = [swap for name, swap in self._swaps.items() if model in {None, name}]
        await asyncio.gather(*map(asyncio.shield, swaps))

    def _find(self, model: str) -> _Serving:
        try:
            return self._serving[model]
        except KeyError:
            name = f"models/{model}"
            raise NotFound(f"there is no model {name!r}", kind="model", resource=name) from None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self._look()
            except OSError as error:  # a network file system that is away for a moment
                log.warning("repository cannot be read", error=str(error))

    async def _look(self) -> None:
        """Start to swap each model whose serving.json is not what it was."""
        async with self._looking:
            marks = await self._in_thread(self._read_marks)
            for model in self._marks.keys() - marks.keys():
                self._remove(model)
            for model, mark in marks.items():
                if mark is None or mark == self._marks.get(model) or model in self._swaps:
                    continue
                swap = asyncio.create_task(self._swap(model, mark), name=f"swap {model}")
                self._swaps[model] = swap
                swap.add_done_callback(partial(self._swaps.pop, model))

    def _read_marks(self) -> dict[str, FileStamp | None]:
        start = time.thread_time()
        try:
            marks = read_marks(self._repository.root / "models", self._marks)
        except FileNotFoundError:
            if self._marks:  # then the repository is away; a new one is empty
                raise
            marks = {}
        cost = time.thread_time() - start
        self._pause = min(max(POLL_SECONDS, cost / POLL_SHARE), LONGEST_POLL_SECONDS)
        return marks

    async def _swap(self, model: str, mark: FileStamp) -> None:
        """Let the revision that serving.json names serve. Raises NotReady, at the start only."""
        starting = self._watcher is None
        try:
            manifest = await self._in_thread(self._read_serving, model)
            known = self._serving.get(model)
            if known is None or known.manifest != manifest:
                serving = _Serving(manifest=manifest, backbone=await self._backbone(manifest))
                # At the start there is nothing that could go on serving in place of a bad head.
                snapshot = None if starting else await self._load(serving)
                self._held.drop(model)  # who holds a snapshot still has all of it
                self._serving[model] = serving
                if snapshot is not None:
                    self._held.put((model, manifest.revision), snapshot)
                self._telemetry.swaps.inc()
                log.info("serving", model=model, revision=manifest.revision)
        except OSError as error:  # a file system that is away for a moment: look again
            log.warning("repository cannot be read", model=model, error=str(error))
            return
        except Exception as error:  # whatever it is, the other models go on
            if isinstance(error, NotReady) and starting:
                raise
            log.error("revision cannot be loaded", model=model, error=repr(error))
        self._marks[model] = mark

    def _read_serving(self, model: str) -> Manifest:
        manifest = self._repository.manifest(model, self._repository.serving(model))
        if self._watcher is not None:  # a new revision: all that can be asked of it must be sound
            self._repository.metrics(manifest)
        return manifest

    def _remove(self, model: str) -> None:
        self._held.drop(model)
        self._marks.pop(model, None)
        if self._serving.pop(model, None) is not None:
            log.info("removed", model=model)

    async def _warm(self, model: str) -> None:
        try:
            await self.snapshot(model)
        except Exception as error:  # those who ask are told; the other models go on
            log.error("head cannot be loaded", model=model, error=repr(error))

    async def _load_asked(self, model: str, revision: int) -> Snapshot:
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

    async def _backbone(self, manifest: Manifest) -> Backbone:
        found = self._backbones.get(manifest.backbone)
        if found is None:
            async with self._opening:  # one at a time: as it warms up, a backbone is timed
                found = self._backbones.get(manifest.backbone)
                if found is None:
                    found = await self._in_thread(self._open_backbone, manifest)
                    self._backbones[manifest.backbone] = found
        return found

    def _open_backbone(self, manifest: Manifest) -> Backbone:
        return open_backbone(
            self._repository.backbone(manifest),
            self._repository.backbone_model(manifest.backbone),
            provider=self._provider,
            cores=self._cores,
        )

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(call, *args, **kwargs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    """What a model serves; its head may be in memory or not."""

    manifest: Manifest
    backbone: Backbone
