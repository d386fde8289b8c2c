"""Authorization table: the role that each rpc needs and the field that names its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from topwork.access.principals import Role

ModelOf: TypeAlias = Callable[[Any], str | None]
"""Returns the resource name of a message's model, None if the message has no such field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Authorization, rate limiting and audit of one rpc."""

    role: Role
    model_of: ModelOf | None
    """None: the service itself checks each model with ``principals.caller()``."""
    images: Callable[[Any], int] = lambda _: 0
    """Returns the number of images to classify in a message."""
    audited: bool = False
    """True if calls are written to the audit log."""


OPEN = ("/grpc.health.v1.Health/",)
"""Prefixes of methods without authentication: probes have no credentials."""

UNCOUNTED = ("/grpc.",)
"""Prefixes of gRPC's own services: their calls are not logged and do not delay shutdown."""


def _model(message: Any) -> str:
    return str(message.model)


def _name(message: Any) -> str:
    return str(message.name)


def _model_of_child(message: Any) -> str:
    """Return the first two segments of a name such as ``models/{model}/examples/{digest}``."""
    return "/".join(str(message.name).split("/")[:2])


def _model_of_policy(message: Any) -> str:
    return "/".join(str(message.policy.name).split("/")[:2])


def _config_model(message: Any) -> str | None:
    return str(message.config.model) if message.HasField("config") else None


def _images(message: Any) -> int:
    return len(message.images) + len(message.inputs)


def _tensors(message: Any) -> int:
    """Return the number of images in a ModelInfer: the first dimension of its first input."""
    shape = message.inputs[0].shape if message.inputs else ()
    return max(0, int(shape[0])) if shape else 0


def _per_model(role: Role, *, audited: bool = False) -> Rule:
    """Return the rule of a method whose service checks each model itself."""
    return Rule(role=role, model_of=None, audited=audited)


_TRAIN = Rule(role="train", model_of=_model, audited=True)
_UPLOAD = Rule(role="train", model_of=_config_model, audited=True)
_ADMIN = Rule(role="admin", model_of=_model, audited=True)

RULES: Mapping[str, Rule] = {
    f"/{service}/{method}": rule
    for service, methods in {
        "topwork.v1.ClassifierService": {
            "Classify": Rule(role="classify", model_of=_model, images=_images),
            # Neighbours need the role train, which the service checks.
            "Explain": Rule(role="classify", model_of=_model, images=lambda _: 1, audited=True),
            "StreamClassify": _per_model(
                "classify"
            ),  # checked per message; a refusal is that message's error
        },
        "topwork.v1.ModelService": {
            "ListModels": _per_model("classify"),
            "GetModel": Rule(role="classify", model_of=_name),
            "ListRevisions": Rule(role="classify", model_of=_model),
            "GetReport": Rule(role="train", model_of=_model_of_child, audited=True),
            "AddClass": _UPLOAD,
            "AddExamples": _UPLOAD,
            "AddClasses": _UPLOAD,
            "RemoveClass": _TRAIN,
            "RenameClass": _TRAIN,
            "Retrain": _TRAIN,
            "ListExamples": _TRAIN,  # names and previews of training images are confidential
            "GetExample": Rule(role="train", model_of=_model_of_child, audited=True),
            "RemoveExamples": _TRAIN,
            "MoveExamples": _TRAIN,
            "Rollback": _ADMIN,
            "PinRevision": _ADMIN,
            "CreateModel": _TRAIN,
            "CopyModel": _TRAIN,  # the service also checks the source
            "DeleteModel": _ADMIN,
            "UndeleteModel": _ADMIN,
            "ListBackbones": _per_model("train"),
            "WatchOperation": _per_model("train"),
            "Evaluate": _UPLOAD,
            "ListEvaluationSets": Rule(role="classify", model_of=_model),
            "GetEvaluationSet": Rule(role="classify", model_of=_model_of_child),
            "DeleteEvaluationSet": Rule(role="admin", model_of=_model_of_child, audited=True),
            "ListEvaluations": Rule(role="classify", model_of=_model),
            "GetEvaluation": Rule(role="classify", model_of=_model_of_child),
        },
        "topwork.v1.ReviewService": {
            "GetReviewPolicy": Rule(role="train", model_of=_model_of_child),
            "UpdateReviewPolicy": Rule(role="train", model_of=_model_of_policy, audited=True),
            "ListCandidates": _TRAIN,  # images of callers are confidential
            "GetCandidate": Rule(role="train", model_of=_model_of_child, audited=True),
            "ListCandidateGroups": _TRAIN,
            "LabelCandidates": _TRAIN,
            # Nothing is learnt before a caller with the role train labels the candidate.
            "CorrectAnswer": Rule(role="classify", model_of=_model, audited=True),
        },
        # An operation needs the role for its model.
        "google.longrunning.Operations": {
            "ListOperations": _per_model("train"),
            "GetOperation": _per_model("train"),
            "WaitOperation": _per_model("train"),
            "CancelOperation": _per_model("train", audited=True),
            "DeleteOperation": _per_model("admin", audited=True),
        },
        "inference.GRPCInferenceService": {
            "ServerLive": _per_model("classify"),
            "ServerReady": _per_model("classify"),
            "ServerMetadata": _per_model("classify"),
            "ModelReady": Rule(role="classify", model_of=_name),
            "ModelMetadata": Rule(role="classify", model_of=_name),
            "ModelConfig": Rule(role="classify", model_of=_name),
            "ModelStatistics": _per_model("classify"),  # without a name, of all models
            "ModelInfer": Rule(
                role="classify", model_of=lambda message: str(message.model_name), images=_tensors
            ),
            "RepositoryIndex": _per_model("classify"),
        },
        "grpc.reflection.v1alpha.ServerReflection": {
            "ServerReflectionInfo": _per_model("classify")
        },
        "grpc.channelz.v1.Channelz": dict.fromkeys(
            (
                "GetTopChannels",
                "GetServers",
                "GetServer",
                "GetServerSockets",
                "GetChannel",
                "GetSubchannel",
                "GetSocket",
            ),
            _per_model("admin"),  # shows other clients' connections
        ),
    }.items()
    for method, rule in methods.items()
}
