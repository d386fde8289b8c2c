"""Options of fine-tuning, made from the fields of its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import click

from topwork_trainer.finetuning.settings import FinetuneConfig


def finetuning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of FinetuneConfig that has a help text."""
    for setting in reversed(_settings()):
        command = _option(setting)(command)
    return command


def finetuning_config(options: dict[str, Any]) -> FinetuneConfig:
    """Return the settings of fine-tuning, which are removed from the command's ``options``."""
    return FinetuneConfig(**{setting.name: options.pop(setting.name) for setting in _settings()})


def _settings() -> list[Field[Any]]:
    return [setting for setting in fields(FinetuneConfig) if setting.metadata["option"]]


def _option(setting: Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    name = setting.name.replace("_", "-")
    default, bounds = setting.default, (setting.metadata["least"], setting.metadata["most"])
    kind: click.ParamType[Any] | None = None
    if isinstance(default, bool):
        name = f"{name}/--no-{name}"
    elif isinstance(default, int):
        kind = click.IntRange(*bounds)
    elif isinstance(default, float):
        kind = click.FloatRange(*bounds)
    return click.option(f"--{name}", type=kind, default=default, help=setting.metadata["option"])
