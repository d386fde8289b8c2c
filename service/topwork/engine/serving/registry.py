"""Which revision of which model is in memory, and how the next one takes its place."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.metrics import Metrics
from topwork.bundle.store import Repository
from topwork.engine.backend import Provider, Session, check_provider, open_session
from topwork.engine.serving.batcher import Batcher
from topwork.errors import Corrupt, NotFound, NotReady

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.2
"""How often serving.json files are looked at, so how long another host's publication may take."""

KEPT_REVISIONS = 64
"""How many heads of revisions that do not serve stay loaded, the least recently asked for last."""

CUDA_BATCH = 32
"""Images in a micro-batch on a GPU; on CPU an image a core is fastest, so 1."""


class Backbone:
    """A backbone in memory: its session and the queue before it, shared by all its models."""

    def __init__(self, info: BackboneInfo, batcher: Batcher) -> None:
        self.info = info
        self.batcher = batcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A revision in memory; immutable. Who holds one sees one revision, whatever is swapped."""

    manifest: Manifest
    metrics: Metrics
    backbone: Backbone
    head: Session


class Registry:
    """Owns the snapshots. Loads the new before it drops the old."""

    def __init__(self, repository: Repository, *, provider: Provider, cores: int) -> None:
        self._repository = repository
        self._provider: Provider = provider
        self._cores = cores
        self._serving: dict[str, Snapshot] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._others: OrderedDict[tuple[str, int], Snapshot] = OrderedDict()
        self._backbones: weakref.WeakValueDictionary[str, Backbone] = weakref.WeakValueDictionary()
        self._lock = asyncio.Lock()
        self._runners: Executor | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load and warm all serving revisions, then watch for new ones.

        Raises NotReady if the provider that was asked for does not work.
        """
        check_provider(self._provider)
        self._runners = ThreadPoolExecutor(self._cores, thread_name_prefix="backbone")
        await self.refresh()
        self._watcher = asyncio.create_task(self._watch(), name="registry")

    async def aclose(self) -> None:
        """Stop watching and release the threads."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._runners is not None:
            self._runners.shutdown(wait=False, cancel_futures=True)

    def models(self) -> list[str]:
        """Return the names of the models that can be asked, sorted."""
        return sorted(self._serving)

    def serving(self, model: str) -> Snapshot:
        """Return the serving snapshot. Raises NotFound."""
        try:
            return self._serving[model]
        except KeyError:
            name = f"models/{model}"
            raise NotFound(f"there is no model {name!r}", kind="model", resource=name) from None

    def knows(self, model: str, revision: int) -> bool:
        """Return whether ``revision`` or a later one serves here."""
        return model in self._serving and self._serving[model].manifest.revision >= revision

    async def snapshot(self, model: str, revision: int) -> Snapshot:
        """Return a revision's snapshot, loaded if it is not the serving one. Raises NotFound."""
        serving = self.serving(model)
        if revision in (0, serving.manifest.revision):
            return serving
        key = (model, revision)
        if key not in self._others:
            async with self._lock:
                if key not in self._others:  # nobody loaded it while this one waited
                    self._others[key] = await asyncio.to_thread(self._load, model, revision)
        found = self._others[key]
        self._others.move_to_end(key)
        while len(self._others) > KEPT_REVISIONS:
            self._others.popitem(last=False)
        return found

    async def refresh(self) -> None:
        """Swap in every revision that serves now and is not in memory yet.

        A revision that cannot be loaded is logged and the one before it goes on serving.
        """
        async with self._lock:
            for model, mark in (await asyncio.to_thread(self._marks)).items():
                if self._seen.get(model) == mark:
                    continue
                try:
                    snapshot = await asyncio.to_thread(self._load_serving, model)
                except OSError as error:  # a file system that is away for a moment: look again
                    log.warning("repository cannot be read", model=model, error=str(error))
                    continue
                except Exception as error:  # whatever it is, the other models go on
                    if isinstance(error, NotReady) and self._watcher is None:
                        raise  # at the start: the provider does not work
                    log.error("revision cannot be loaded", model=model, error=repr(error))
                else:
                    self._serving[model] = snapshot
                    log.info("serving", model=model, revision=snapshot.manifest.revision)
                self._seen[model] = mark

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.refresh()
            except OSError as error:  # a network file system that is away for a moment
                log.warning("repository cannot be read", error=str(error))

    def _marks(self) -> dict[str, tuple[int, int]]:
        """Return what changes when a model's serving.json is replaced."""
        marks = {}
        for model in self._repository.models():
            status = self._repository.serving_file(model).stat()
            marks[model] = (status.st_ino, status.st_mtime_ns)
        return marks

    def _load_serving(self, model: str) -> Snapshot:
        return self._load(model, self._repository.serving(model))

    def _load(self, model: str, revision: int) -> Snapshot:
        manifest = self._repository.manifest(model, revision)
        head = open_session(self._repository.head(manifest), output="probabilities")
        snapshot = Snapshot(
            manifest=manifest,
            metrics=self._repository.metrics(manifest),
            backbone=self._backbone(manifest),
            head=head,
        )
        answer = snapshot.head.run(np.zeros((1, snapshot.backbone.info.width), dtype=np.float32))
        if manifest.chosen.unknown_threshold is not None and "unknown" not in head.outputs():
            raise Corrupt(f"the head of {model} revision {revision} cannot tell the unknown")
        if answer.shape != (1, len(manifest.labels)):
            raise Corrupt(
                f"the head of {model} revision {revision} gives {answer.shape[-1]} probabilities "
                f"for {len(manifest.labels)} labels"
            )
        return snapshot

    def _backbone(self, manifest: Manifest) -> Backbone:
        loaded = self._backbones.get(manifest.backbone)
        if loaded is not None:
            return loaded
        assert self._runners is not None, "start() comes first"
        info = self._repository.backbone(manifest)
        session = open_session(
            self._repository.backbone_model(manifest.backbone),
            output="embedding",
            provider=self._provider,
        )
        crop = info.preprocess.crop
        max_batch = CUDA_BATCH if session.on_cuda else 1
        for size in {1, max_batch}:  # the first run of a shape plans memory: not at a user's cost
            session.run(np.zeros((size, crop, crop, 3), dtype=np.uint8))
        runners = 1 if session.on_cuda else self._cores
        batcher = Batcher(session.run, self._runners, runners=runners, max_batch=max_batch)
        backbone = Backbone(info, batcher)
        self._backbones[manifest.backbone] = backbone
        return backbone
