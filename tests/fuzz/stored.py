"""What lies in a repository: documents and shards that can be used, or Corrupt."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import numpy as np

from fuzz import workplace
from topwork.bundle import exemplars
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.files import sha256
from topwork.bundle.manifest import (
    SCHEMA,
    BackboneInfo,
    Manifest,
    check_may_serve,
)
from topwork.bundle.metrics import Metrics
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.shards import open_shard
from topwork.bundle.signing.signatures import Signatures
from topwork.bundle.store import read_manifest
from topwork.errors import Corrupt, NotReady
from topwork.rpc.convert.revisions import PublishedRevision, StoredModel, to_model

KINDS = (Manifest, BackboneInfo, Metrics, ServingState, Signatures)
"""What a document may be; the first byte of an input says which."""


def read_json(content: bytes) -> None:
    """Read a document of any kind, and tell a client of it."""
    kind = KINDS[content[0] % len(KINDS)] if content else Manifest
    try:
        document: object = from_json(content[1:], kind, name="it")
        if isinstance(document, Manifest):
            path = workplace.directory() / "manifest.json"
            path.write_bytes(content[1:])
            if document.schema <= SCHEMA:
                assert read_manifest(path) == document
    except Corrupt:
        return
    assert from_json(to_json(document), kind, name="it") == document or b"NaN" in to_json(document)
    repository = workplace.repository()
    manifest = repository.manifest(workplace.MODEL, 1)
    metrics, backbone = repository.metrics(manifest), repository.backbone(manifest)
    state = ServingState(revision=1)
    if isinstance(document, Manifest):
        manifest = document
        with contextlib.suppress(NotReady):
            check_may_serve(document)
    elif isinstance(document, Metrics):
        metrics = document
    elif isinstance(document, BackboneInfo):
        backbone = document
    elif isinstance(document, ServingState):
        state = document
    published = PublishedRevision(manifest, metrics, backbone)
    to_model(StoredModel(state, published, [1]), workplace.LIMITS).SerializeToString()


def read_shard(content: bytes) -> None:
    """Read any bytes as a shard of exemplars, and all that it has."""
    path = workplace.directory() / "shard.npz"
    path.write_bytes(content)
    try:
        shard = open_shard(path, sha256(content))
        merged = exemplars.merge([("a", shard), ("b", shard)])
    except Corrupt:
        return
    assert len(shard) == len(shard.names) == len(shard.thumbnails)
    assert len(merged) <= 2 * len(shard)
    assert np.asarray(shard.embeddings).dtype == np.float32
    merged.data_digest()


def documents() -> list[bytes]:
    """Return a document of each kind, and the same cut short."""
    repository = workplace.repository()
    manifest = repository.manifest(workplace.MODEL, 1)
    move = Move(revision=2, previous=1, why="fit", operation="", time=datetime.now(UTC))
    made = (
        manifest,
        repository.backbone(manifest),
        repository.metrics(manifest),
        ServingState(revision=1, pinned=(1,)).moved(move),
        Signatures(signatures={"0123456789abcdef": bytes(64)}),
    )
    whole = [bytes([number]) + to_json(one) for number, one in enumerate(made)]
    return [*whole, *(one[: len(one) // 2] for one in whole)]


def shards() -> list[bytes]:
    """Return shards of three exemplars and of none."""
    repository = workplace.repository()
    manifest = repository.manifest(workplace.MODEL, 1)
    some = repository.exemplars(manifest.exemplars)
    few = some.where(np.arange(len(some)) < 3)
    return [
        exemplars_file
        for part in (few, few.where(np.zeros(len(few), dtype=bool)))
        for exemplars_file in _files(part)
    ]


def _files(some: exemplars.Exemplars) -> list[bytes]:
    from support import tiny

    return list(tiny.shard_files(some).values())
