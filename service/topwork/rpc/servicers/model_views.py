"""Models as messages: the serving revision, or the draft of a model without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import structlog

from topwork.bundle.draft import Current, Draft
from topwork.bundle.manifest import Manifest
from topwork.bundle.serving import ServingState
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound
from topwork.limits import ServerLimits
from topwork.rpc.convert.revisions import PublishedRevision, StoredModel, to_draft_model, to_model
from topwork.serving.backbones import LoadedBackbone
from topwork.serving.registry import Registry
from topwork.v1 import model_service_pb2 as model_pb

log = structlog.get_logger(__name__)

T = TypeVar("T")


class ModelViews:
    """Models as messages."""

    def __init__(self, repository: Repository, registry: Registry, limits: ServerLimits) -> None:
        self._repository = repository
        self._registry = registry
        self._limits = limits

    async def message(self, model: str) -> model_pb.Model:
        """Return a model. Raises NotFound."""
        current = self._registry.current(model)
        if isinstance(current, Draft):
            return await asyncio.to_thread(self._draft, current)
        loaded = self._registry.backbone(model)
        stored = await asyncio.to_thread(self._stored, current, loaded)
        return to_model(stored, self._limits)

    def _draft(self, draft: Draft) -> model_pb.Model:
        info = self._intact(self._repository.backbone, draft)
        revisions = self._repository.revisions(draft.model)
        return to_draft_model(draft, info, revisions, self._limits)

    def _stored(self, manifest: Manifest, loaded: LoadedBackbone) -> StoredModel:
        """Return a model; of what cannot be read only what is in memory."""
        state = self._intact(lambda shown: self._repository.serving_state(shown.model), manifest)
        return StoredModel(
            state or ServingState(revision=manifest.revision),
            PublishedRevision(
                manifest,
                self._intact(lambda _: self._repository.metrics(manifest), manifest),
                self._intact(self._repository.backbone, manifest),
            ),
            self._repository.revisions(manifest.model),
            loaded,
        )

    def _intact(self, read: Callable[[Current], T], current: Current) -> T | None:
        """Return what ``read`` does; log it and return None if it is damaged."""
        try:
            return read(current)
        except (Corrupt, NotFound) as error:
            log.warning("model cannot be described", model=current.model, error=str(error))
            return None
