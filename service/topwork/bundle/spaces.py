"""Spaces of embeddings, stored like backbones, with a description in place of a graph."""

from __future__ import annotations

from topwork.bundle.blobs import BlobStore
from topwork.bundle.documents import to_json
from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.storage.files import sha256


def put_space(store: BlobStore, spec: EmbeddingSpec) -> BackboneInfo:
    """Store the space that models are made in, unless it exists, and return its description."""
    content = to_json(spec)
    digest = sha256(content)
    info = BackboneInfo(
        name=spec.space,
        identity=f"embedding:{spec.width}:{spec.space}",
        digest=digest,
        preprocess=spec,
        width=spec.width,
        precision="fp32",
        licence="",
        source="computed by the client",
        weights_digest=digest,
        parity_error=0.0,
        versions={},
    )
    return store.put_backbone(content, info)
