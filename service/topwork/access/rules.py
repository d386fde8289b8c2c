"""The one table of what each rpc needs: a role, and for which model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from topwork.access.principals import Role

About: TypeAlias = Callable[[Any], str | None]
"""Returns the resource name of the model that a message is about; None: it says nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one rpc needs."""

    role: Role
    about: About | None
    """How a message names its model; None: the service itself asks ``principals.caller()``."""
    images: Callable[[Any], int] = lambda _: 0
    """To be classified, in a message."""
    changes: bool = False
    """Whether it is told in the audit."""


OPEN = ("/grpc.health.v1.Health/",)
"""Methods that need no role: a probe has no credentials, and learns no more than a bit."""

UNCOUNTED = ("/grpc.",)
"""Methods of gRPC's own services: not logged, and they hold up no shutdown."""


def _model(message: Any) -> str:
    return str(message.model)


def _name(message: Any) -> str:
    return str(message.name)


def _first(message: Any) -> str | None:
    return str(message.config.model) if message.HasField("config") else None


def _images(message: Any) -> int:
    return len(message.images)


def _tensors(message: Any) -> int:
    """Return the images of a ModelInfer: the first side of its first input."""
    shape = message.inputs[0].shape if message.inputs else ()
    return max(0, int(shape[0])) if shape else 0


def _asked(role: Role, *, changes: bool = False) -> Rule:
    """Return the rule of a method that asks of each model that it comes upon."""
    return Rule(role=role, about=None, changes=changes)


_TRAIN = Rule(role="train", about=_model, changes=True)
_UPLOAD = Rule(role="train", about=_first, changes=True)
_ADMIN = Rule(role="admin", about=_model, changes=True)

RULES: Mapping[str, Rule] = {
    f"/{service}/{method}": rule
    for service, methods in {
        "topwork.v1.ClassifierService": {
            "Classify": Rule(role="classify", about=_model, images=_images),
            "StreamClassify": _asked("classify"),  # each message, and as its own error
        },
        "topwork.v1.ModelService": {
            "ListModels": _asked("classify"),
            "GetModel": Rule(role="classify", about=_name),
            "ListRevisions": Rule(role="classify", about=_model),
            "AddClass": _UPLOAD,
            "AddExamples": _UPLOAD,
            "RemoveClass": _TRAIN,
            "RenameClass": _TRAIN,
            "Retrain": _TRAIN,
            "Rollback": _ADMIN,
            "PinRevision": _ADMIN,
            "WatchOperation": _asked("train"),
        },
        # An operation belongs to its model.
        "google.longrunning.Operations": {
            "ListOperations": _asked("train"),
            "GetOperation": _asked("train"),
            "WaitOperation": _asked("train"),
            "CancelOperation": _asked("train", changes=True),
            "DeleteOperation": _asked("admin", changes=True),
        },
        "inference.GRPCInferenceService": {
            "ServerLive": _asked("classify"),
            "ServerReady": _asked("classify"),
            "ServerMetadata": _asked("classify"),
            "ModelReady": Rule(role="classify", about=_name),
            "ModelMetadata": Rule(role="classify", about=_name),
            "ModelConfig": Rule(role="classify", about=_name),
            "ModelStatistics": _asked("classify"),  # without a name it tells of all
            "ModelInfer": Rule(
                role="classify", about=lambda message: str(message.model_name), images=_tensors
            ),
            "RepositoryIndex": _asked("classify"),
        },
        "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _asked("classify")},
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
            _asked("admin"),  # it tells of other clients
        ),
    }.items()
    for method, rule in methods.items()
}
