"""Options of ``topwork serve``, ``worker`` and ``gateway``, made from the table of settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click
import pytest

from topwork.cli.serve import gateway, serve, worker
from topwork.config import GatewayConfig, ServeConfig, WorkerConfig

ROOT = Path(__file__).parents[3]


def row(option: click.Option) -> str:
    """Return an option's row in the documentation."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = ""
    if isinstance(option.show_default, str):
        default = option.show_default
    elif option.secondary_opts:
        default = "on" if option.default else "off"
    elif isinstance(option.default, str):
        default = f"`{option.default}`"
    elif not option.is_flag and not option.required:
        default = f"{option.default:.12g}"
    description = option.help or ""
    if isinstance(option.type, click.Choice):
        description = f"{description} One of {', '.join(option.type.choices)}."
    return " ".join(f"| {names} | {default} | {description} |".split())


def options(command: click.Command) -> list[click.Option]:
    """Return a command's options."""
    return [option for option in command.params if isinstance(option, click.Option)]


@pytest.mark.parametrize("command", [serve, gateway], ids=lambda command: command.name)
def test_documentation_lists_the_options(command: click.Command) -> None:
    """The table equals the help texts and defaults of the options, row by row."""
    header = f"| `topwork {command.name}` | default | |"
    pages = {page: page.read_text(encoding="utf-8") for page in ROOT.glob("docs/*.md")}
    pages[ROOT / "README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
    (text,) = (text for text in pages.values() if header in text)
    _, _, rest = text.partition(f"{header}\n| --- | --- | --- |\n")
    found = rest.partition("\n\n")[0].splitlines()
    expected = [row(option) for option in options(command)]
    for line in expected:
        assert line in found, f"the table of settings lacks this line:\n{line}"
    assert found == expected, "the table of settings should be:\n" + "\n".join(expected)


@pytest.mark.parametrize(
    ("command", "table", "beside"),
    [
        (serve, ServeConfig, {"print_config"}),
        (worker, WorkerConfig, set()),
        (gateway, GatewayConfig, set()),
    ],
)
def test_every_option_is_a_setting_of_its_name(
    command: click.Command, table: type[WorkerConfig | GatewayConfig], beside: set[str]
) -> None:
    """``--queue-limit`` is ``queue_limit``, and so on."""
    for option in options(command):
        assert option.opts == [f"--{str(option.name).replace('_', '-')}"]
    names = {option.name for option in options(command)}
    assert names == {field.name for field in fields(table)} | beside
