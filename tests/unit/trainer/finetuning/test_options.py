"""Options of fine-tuning: each field with a help text is an option, and its value arrives."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click
import pytest
from click.testing import CliRunner

from topwork_trainer.cli.finetuning import finetuning_config, finetuning_options
from topwork_trainer.finetuning.settings import FinetuneConfig


def parse(*arguments: str) -> FinetuneConfig:
    """Return the settings that a command with these arguments gets."""
    got: list[FinetuneConfig] = []

    @click.command()
    @finetuning_options
    def command(**options: Any) -> None:
        got.append(finetuning_config(options))
        assert not options

    result = CliRunner().invoke(command, arguments)
    if result.exit_code:
        raise click.UsageError(result.output)
    return got[0]


def test_no_arguments_give_the_defaults() -> None:
    """Defaults of the options are those of the settings."""
    assert parse() == FinetuneConfig()


def test_values_of_options_arrive() -> None:
    """Text, numbers and switches have the types of their fields."""
    assert parse(
        *("--unfreeze", "last:2", "--epochs", "7", "--label-smoothing", "0.1"),
        *("--no-average-weights", "--no-mirror"),
    ) == FinetuneConfig(
        unfreeze="last:2", epochs=7, label_smoothing=0.1, average_weights=False, mirror=False
    )


def test_fields_without_help_are_no_options() -> None:
    """Learning rates are settings of the code alone."""
    assert any(not setting.metadata["option"] for setting in fields(FinetuneConfig))
    with pytest.raises(click.UsageError, match="No such option"):
        parse("--rate", "1")


@pytest.mark.parametrize("value", ["-0.1", "1"])
def test_values_out_of_bounds_are_refused(value: str) -> None:
    """The bounds of a field are those of its option."""
    with pytest.raises(click.UsageError, match=r"0<=x<=0\.9"):
        parse("--label-smoothing", value)
