"""Session of a stored backbone on this machine, or of its fp32 twin if the backbone is off here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.store import Repository
from topwork.errors import Corrupt
from topwork.runtime.agreement import facts, is_off, measure, replacement
from topwork.runtime.backend import open_session


class EmbeddingSession(Protocol):
    """What computes the embeddings of a backbone; see ``topwork.runtime.backend.Session``."""

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Return the embeddings (N, D) of prepared inputs (N, ...), rows in input order."""


class Computed:
    """EmbeddingSession of embeddings that the client has computed: it has nothing left to do."""

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """See EmbeddingSession."""
        return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedBackbone:
    """Backbone that embeds inputs on this machine."""

    info: BackboneInfo
    """Of the graph that runs: the stored backbone, or its twin."""
    session: EmbeddingSession
    off: dict[str, object] | None
    """None if the stored backbone agrees here; else the facts to log."""


def open_backbone_session(repository: Repository, info: BackboneInfo) -> UsedBackbone:
    """Open the session that embeds inputs with a stored backbone.

    Raises Corrupt if the backbone cannot be read or loaded.
    """
    if not info.has_graph:
        return UsedBackbone(info=info, session=Computed(), off=None)
    session = open_session(repository.backbone_model(info.digest), output="embedding")
    found = measure(info, session.run)
    used, twin_error = info, ""
    if (twin := replacement(info, found)) is not None:
        try:
            session = open_session(repository.backbone_model(twin.digest), output="embedding")
            used = twin
        except Corrupt as error:
            twin_error = str(error)
    off = None
    if is_off(found):
        off = facts(info, used, found, provider=session.provider, twin_error=twin_error)
    return UsedBackbone(info=used, session=session, off=off)
