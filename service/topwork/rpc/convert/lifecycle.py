"""Conversion of the messages that make models, and of backbones."""

from __future__ import annotations

from topwork.bundle.manifest import BackboneInfo
from topwork.bundle.recipe import Recipe
from topwork.changes.intake import choose_recipe
from topwork.changes.lifecycle import NewModel
from topwork.inputs.embeddings import space_of
from topwork.rpc.convert import fields
from topwork.rpc.convert.revisions import to_backbone
from topwork.v1 import model_lifecycle_pb2 as lifecycle_pb


def from_create(message: lifecycle_pb.CreateModelRequest) -> NewModel:
    """Return the model that a message asks for. Raises InvalidInput."""
    like = fields.model_id(message.like, field="like") if message.HasField("like") else ""
    return NewModel(
        name=fields.new_model_id(message.model, field="model"),
        backbone=message.backbone,
        like=like,
        space=space_of(message.embedding.space, message.embedding.width)
        if message.HasField("embedding")
        else None,
        seed=message.seed,
        recipe=choose_recipe(message.head, message.normalisation, Recipe()),
        request_id=fields.request_id(message.request_id),
    )


def to_stored_backbone(info: BackboneInfo, size: int) -> lifecycle_pb.StoredBackbone:
    """Return a backbone of the repository, whose file has ``size`` bytes."""
    return lifecycle_pb.StoredBackbone(
        backbone=to_backbone(info), licence=info.licence, source=info.source, size_bytes=size
    )
