"""Stages of a backbone: its top can be thawed, the rest not. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from torch import nn

from topwork.errors import InvalidInput
from topwork_trainer.backbones.efficientnet_lite import EfficientNetLite
from topwork_trainer.backbones.joined import Joined


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneStage:
    """Parameters that are thawed together."""

    name: str
    """Of the stage's first submodule, such as ``layer4``; of an EfficientNet-Lite what it is."""
    parameters: tuple[str, ...]
    """Their names in the module, input side first."""
    size: int
    """How many numbers they are."""


def stages(module: nn.Module) -> tuple[BackboneStage, ...]:
    """Return the stages of a backbone, from the output side to the input side.

    Every parameter is in one stage. Of our own networks and torchvision's these are the blocks that
    their authors named; of any other network, its children. Joined backbones count side by side.
    """
    if isinstance(module, Joined):
        return _side_by_side(module)
    groups: dict[str, list[str]] = {}
    bare: list[str] = []  # tokens and position embeddings: they belong to the input
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
    """Return how many stages ``none``, ``last:N`` or ``all`` thaws, counted from the output side.

    Raises InvalidInput, naming what is possible.
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
        f"unfreeze {unfreeze!r} is not possible: say none, all, or last:1 to last:{count}, which"
        f" counts in this order: {order}",
        field="unfreeze",
    )


# Modules that only hold stages, as torchvision and our own networks name them.
_OPEN = {"features", "encoder", "layers", "trunk_output", "blocks", "_blocks"}


def _side_by_side(joined: Joined) -> tuple[BackboneStage, ...]:
    """Return the uppermost stages of all parts as one, then the next ones, and so on."""
    paths = [f"parts.{index}.module" for index in range(len(joined.parts))]
    columns = [
        [
            BackboneStage(
                name=stage.name,
                parameters=tuple(f"{path}.{name}" for name in stage.parameters),
                size=stage.size,
            )
            for stage in stages(joined.get_submodule(path))
        ]
        for path in paths
    ]
    rows = [[stage for stage in row if stage] for row in zip_longest(*columns)]
    return tuple(
        BackboneStage(
            name=" + ".join(stage.name for stage in row),
            parameters=tuple(name for stage in row for name in stage.parameters),
            size=sum(stage.size for stage in row),
        )
        for row in rows
    )


def _unit(name: str) -> str | None:
    """Return the submodule that the parameter ``name`` shares a stage with; None: no such."""
    *path, _ = name.split(".")
    for depth, part in enumerate(path, start=1):
        if part not in _OPEN:
            return ".".join(path[:depth])
    return None


def _named_for_lite(module: EfficientNetLite, groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the groups of an EfficientNet-Lite, whose flat list of blocks is seven stages.

    Blocks of one stage have the same channels out, and neighbouring stages have others.
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
