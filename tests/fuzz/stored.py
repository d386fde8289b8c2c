"""Fuzz targets of stored documents and shards: usable values, or Corrupt."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from datetime import UTC, datetime

import numpy as np

from fuzz import sandbox
from topwork.bundle import examples, exemplars
from topwork.bundle.documents import from_json, to_json
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
from topwork.rpc.convert.examples import to_example
from topwork.rpc.convert.revisions import PublishedRevision, StoredModel, to_model
from topwork.serving.examples import ExampleFilter, Pattern, select
from topwork.storage.file_storage import FileStorage
from topwork.storage.files import sha256

KINDS = (Manifest, BackboneInfo, Metrics, ServingState, Signatures)
"""Types of documents; the first byte of an input is an index."""


def read_json(content: bytes) -> None:
    """Read a document of any type, and convert it to a response."""
    kind = KINDS[content[0] % len(KINDS)] if content else Manifest
    try:
        document: object = from_json(content[1:], kind, name="it")
        if isinstance(document, Manifest):
            path = sandbox.directory() / "manifest.json"
            path.write_bytes(content[1:])
            if document.schema <= SCHEMA:
                assert read_manifest(FileStorage(path.parent), path.name) == document
    except Corrupt:
        return
    assert from_json(to_json(document), kind, name="it") == document or b"NaN" in to_json(document)
    repository = sandbox.repository()
    manifest = repository.manifest(sandbox.MODEL, 1)
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
    to_model(StoredModel(state, published, [1]), sandbox.LIMITS).SerializeToString()


def read_shard(content: bytes) -> None:
    """Read any bytes as a shard of exemplars, with all its arrays."""
    path = sandbox.directory() / "shard.npz"
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


def read_examples(content: bytes) -> None:
    """Read any bytes as an index of examples, and convert each to a response."""
    manifest = sandbox.repository().manifest(sandbox.MODEL, 1)
    try:
        index = examples.from_bytes(content, manifest.labels, len(manifest.exemplars))
    except Corrupt:
        return
    for row in select(index, manifest, ExampleFilter()).tolist():
        to_example(manifest, index, row, None).SerializeToString()
    select(index, manifest, ExampleFilter(name=Pattern(text="a", prefix=True), operation=""))


def indexes() -> list[bytes]:
    """Return indexes of all examples, and of none."""
    repository = sandbox.repository()
    whole = repository.examples(repository.manifest(sandbox.MODEL, 1))
    none = {
        field.name: getattr(whole, field.name)[:0]
        for field in fields(whole)
        if field.name != "labels"
    }
    return [examples.to_bytes(whole), examples.to_bytes(replace(whole, **none))]


def documents() -> list[bytes]:
    """Return a document of each type, whole and truncated."""
    repository = sandbox.repository()
    manifest = repository.manifest(sandbox.MODEL, 1)
    move = Move(revision=2, previous=1, why="fit", operation="", time=datetime.now(UTC))
    made = (
        manifest,
        repository.backbone(manifest),
        repository.metrics(manifest),
        ServingState(revision=1, pinned=(1,)).moved(move),
        Signatures(signatures={"0123456789abcdef": bytes(64)}),
    )
    whole = [bytes([number]) + to_json(document) for number, document in enumerate(made)]
    return [*whole, *(content[: len(content) // 2] for content in whole)]


def shards() -> list[bytes]:
    """Return shards with three and without exemplars."""
    repository = sandbox.repository()
    manifest = repository.manifest(sandbox.MODEL, 1)
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
