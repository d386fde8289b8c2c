"""Stages of a backbone, the units in which fine-tuning unfreezes it. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch import nn

from topwork.errors import InvalidInput
from topwork_trainer.backbones.efficientnet_lite import EfficientNetLite
from topwork_trainer.backbones.joined import Joined
from topwork_trainer.backbones.pooled import Pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneStage:
    """Parameters that are unfrozen together."""

    name: str
    """Name of the first submodule, such as ``layer4``; ``stage 7`` for an EfficientNet-Lite."""
    parameters: tuple[str, ...]
    """Names in the module, input side first."""
    size: int
    """Number of parameters, counted by element."""

    @property
    def first_module(self) -> str | None:
        """Name of the submodule on the input side; None: the first parameter has none."""
        return _unit(self.parameters[0])


def stages(module: nn.Module) -> tuple[BackboneStage, ...]:
    """Return the stages of a backbone, from the output side to the input side.

    Every parameter is in one stage. The stages of EfficientNet-Lite and torchvision's networks are
    the blocks that their authors named, those of any other network its children. The k-th stages of
    joined backbones form one stage.
    """
    if isinstance(module, Joined):
        return _joined_stages(module)
    if isinstance(module, Pooled):
        return _inner_stages(module, "module")
    groups: dict[str, list[str]] = {}
    bare: list[str] = []  # tokens and position embeddings, which belong to the input stage
    parameters = dict(module.named_parameters())
    for name in parameters:
        unit = _unit(name)
        if unit is None:
            bare.append(name)
        else:
            groups.setdefault(unit, []).append(name)
    if isinstance(module, EfficientNetLite):
        groups = _named_for_lite(module, groups)
    merged: list[tuple[str, list[str]]] = []
    for unit, names in groups.items():
        # A normalisation alone belongs to the layer whose output it scales.
        if merged and all(parameters[name].ndim == 1 for name in names):
            merged[-1][1].extend(names)
        else:
            merged.append((unit, names))
    if bare:
        merged = [(merged[0][0], bare + merged[0][1]), *merged[1:]] if merged else [("all", bare)]
    return tuple(
        BackboneStage(
            name=unit, parameters=tuple(names), size=sum(parameters[n].numel() for n in names)
        )
        for unit, names in reversed(merged)
    )


def parse(unfreeze: str, available: Sequence[BackboneStage]) -> int:
    """Return the number of stages that ``none``, ``last:N`` or ``all`` unfreezes.

    ``available`` has the output side first. Raises InvalidInput with the possible values.
    """
    count = len(available)
    if unfreeze == "none":
        return 0
    if unfreeze == "all":
        return count
    match = re.fullmatch(r"last:([0-9]{1,4})", unfreeze)
    if match and 1 <= int(match[1]) <= count:
        return int(match[1])
    order = ", ".join(stage.name for stage in available)
    raise InvalidInput(
        f"unfreeze {unfreeze!r} is not possible: use none, all, or last:1 to last:{count}; the"
        f" order of the stages is {order}",
        field="unfreeze",
    )


# Names of modules that only contain stages, in torchvision, timm, transformers and ours.
_CONTAINERS = {
    *("features", "encoder", "layers", "trunk_output", "blocks", "_blocks"),
    *("stages", "vision_transformer", "model", "layer"),
}


def _joined_stages(joined: Joined) -> tuple[BackboneStage, ...]:
    """Return the last stages of all parts as one stage, then the stages before them, and so on."""
    columns = [_inner_stages(joined, f"parts.{index}.module") for index in range(len(joined.parts))]
    rows = [[stage for stage in row if stage] for row in zip_longest(*columns)]
    return tuple(
        BackboneStage(
            name=" + ".join(stage.name for stage in row),
            parameters=tuple(name for stage in row for name in stage.parameters),
            size=sum(stage.size for stage in row),
        )
        for row in rows
    )


def _inner_stages(module: nn.Module, path: str) -> tuple[BackboneStage, ...]:
    """Return the stages of a submodule, with the names of their parameters in ``module``."""
    return tuple(
        replace(stage, parameters=tuple(f"{path}.{name}" for name in stage.parameters))
        for stage in stages(module.get_submodule(path))
    )


def _unit(name: str) -> str | None:
    """Return the submodule whose parameters are in one stage with ``name``; None: no submodule."""
    *path, _ = name.split(".")
    for depth, part in enumerate(path, start=1):
        if part not in _CONTAINERS:
            return ".".join(path[:depth])
    return None


def _named_for_lite(module: EfficientNetLite, groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the groups of an EfficientNet-Lite, with its flat list of blocks in seven stages.

    Blocks of a stage have equal numbers of output channels, neighbouring stages different ones.
    """
    named: dict[str, list[str]] = {}
    stage, channels = 0, 0
    for unit, names in groups.items():
        name = "head" if stage else "stem"
        if unit.startswith("_blocks."):
            out = module.get_submodule(f"{unit}._project_conv").get_parameter("weight").shape[0]
            stage += out != channels
            name, channels = f"stage {stage}", out
        named.setdefault(name, []).extend(names)
    return named
