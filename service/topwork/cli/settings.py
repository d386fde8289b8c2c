"""Command line options made from the fields of a table of settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from topwork.cli.addresses import Address, check_url
from topwork.config import GatewayConfig, Setting, WorkerConfig
from topwork.errors import InvalidInput
from topwork.repository_option import RepositoryType

C = TypeVar("C", bound=WorkerConfig | GatewayConfig)

_PATHS = {
    "directory": click.Path(file_okay=False, path_type=Path),
    "file": click.Path(dir_okay=False, path_type=Path),
    "existing": click.Path(exists=True, path_type=Path),
    "existing file": click.Path(exists=True, dir_okay=False, path_type=Path),
}


def settings_options(kind: type[C]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of the table ``kind``, as one argument ``config``."""
    hints = get_type_hints(kind, include_extras=True)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def collected(**arguments: Any) -> None:
            settings = {field.name: arguments.pop(field.name) for field in fields(kind)}
            try:
                config = kind(
                    **{name: value for name, value in settings.items() if value is not None}
                )
            except InvalidInput as error:
                raise click.UsageError(str(error)) from error
            command(config=config, **arguments)

        decorated: Callable[..., None] = functools.wraps(command)(collected)
        for field in reversed(fields(kind)):
            decorated = _option(field, hints[field.name])(decorated)
        return decorated

    return decorate


def _option(field: Field[Any], hint: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of a field whose type is Annotated with a Setting."""
    kind, setting = get_args(hint)
    name = f"--{field.name.replace('_', '-')}"
    more: dict[str, Any] = {}
    if kind is bool and setting.kind != "flag":
        name = f"{name}/--no-{name[2:]}"
    elif kind is bool:
        more["is_flag"] = True
    elif setting.kind == "url":
        more["callback"] = check_url
    else:
        more["type"] = _type(kind, setting, optional=field.default == "")
    if field.default is MISSING and field.default_factory is MISSING:
        more["required"] = True
    elif setting.default:  # the table fills in the field's own default
        more |= {"default": None, "show_default": setting.default}
    else:
        more["default"] = field.default
    return click.option(name, help=setting.help, **more)


def _type(kind: Any, setting: Setting, *, optional: bool) -> click.ParamType[Any]:
    """Return click's type for values of the type ``kind``, such as ``int | None``."""
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if setting.kind == "repository":
        return RepositoryType()
    (plain,) = {*(get_args(kind) or (kind,))} - {NoneType}
    if plain is Path:
        return _PATHS[setting.kind]
    if plain is int:
        return click.IntRange(setting.least, setting.most)
    if plain is float:
        is_open = setting.above is not None
        least = setting.above if is_open else setting.least
        return click.FloatRange(least, setting.most, min_open=is_open)
    if setting.kind:
        return Address(
            of_client=setting.kind == "server",
            optional=optional,
            lone_port=setting.kind == "port or address",
        )
    return click.STRING
