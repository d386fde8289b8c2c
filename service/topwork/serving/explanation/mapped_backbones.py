"""Backbones that output their feature maps, loaded by the first explanation that needs each."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotReady, Unavailable
from topwork.serving.backbones import LoadedBackbone, unload_with
from topwork.serving.classify_batch import Encoding
from topwork.serving.encoders.encoder import Encoder
from topwork.serving.explanation.map_graph import (
    MapLayout,
    NoMap,
    check_positions,
    unloadable,
    with_maps,
)
from topwork.storage.files import sha256


@dataclass(frozen=True, slots=True)
class MappedBackbone:
    """Variant of a backbone in the encoder."""

    encoding: Encoding
    layout: MapLayout


class MappedBackbones:
    """Owner of the variants, each loaded as long as its backbone. Belongs to one event loop."""

    def __init__(self, repository: Repository, encoder: Encoder) -> None:
        self._repository = repository
        self._encoder = encoder
        self._loads: weakref.WeakKeyDictionary[
            LoadedBackbone, asyncio.Task[MappedBackbone | NoMap]
        ] = weakref.WeakKeyDictionary()

    async def get(self, backbone: LoadedBackbone) -> MappedBackbone:
        """Return the variant of a backbone, loaded if necessary.

        Concurrent callers wait for the same load, which continues if a caller is cancelled. Raises
        NoMap if the backbone has none, and Unavailable if it cannot be loaded now.
        """
        check_positions(backbone.info)
        load = self._loads.get(backbone)
        if load is None:
            load = asyncio.create_task(self._load(backbone), name="load map")
            self._loads[backbone] = load
        try:
            found = await asyncio.shield(load)
        except OSError as error:  # no encoder process runs, or the file system is unavailable
            text = f"the backbone cannot be loaded for explanations now: {error.strerror}"
            raise Unavailable(text) from error
        finally:
            if load.done() and (load.cancelled() or load.exception() is not None):
                self._loads.pop(backbone, None)  # the next call tries again
        if isinstance(found, NoMap):
            raise NoMap(str(found))
        return found

    async def _load(self, backbone: LoadedBackbone) -> MappedBackbone | NoMap:
        info, build = backbone.info, _builder(self._repository, backbone.info.digest)
        try:
            model, layout = await asyncio.to_thread(build)
            # The probe images' embeddings are those of the plain graph, which is checked already.
            mapped = replace(
                info, digest=sha256(model), width=layout.row_width, expected=None, twin=None
            )
            await self._encoder.load(mapped, lambda: build()[0])
        except NoMap as found:
            return found
        except (Corrupt, NotReady) as error:
            return unloadable(error)
        unload_with(backbone, self._encoder, mapped.digest)
        return MappedBackbone(Encoding(mapped.digest, layout.width), layout)


def _builder(repository: Repository, digest: str) -> Callable[[], tuple[bytes, MapLayout]]:
    return lambda: with_maps(repository.backbone_model(digest))
