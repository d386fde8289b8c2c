"""compose.yaml: schema, options, confinement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from topwork.cli.commands import cli

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def check(path: Path) -> subprocess.CompletedProcess[str]:
    """Validate a file against the schema of compose files."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_file_follows_the_schema() -> None:
    """The file is valid by the published schema."""
    done = check(ROOT / "compose.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_schema_rejects_an_unknown_field(tmp_path: Path) -> None:
    """Validation fails for a misspelt field, so it can fail."""
    wrong = tmp_path / "compose.yaml"
    text = (ROOT / "compose.yaml").read_text()
    wrong.write_text(text.replace("read_only: true", "readonly: true", 1))
    assert check(wrong).returncode == 1


def test_server_arguments_are_options() -> None:
    """The arguments are options of `topwork serve`, and its worker has a fixed name."""
    name, *arguments = COMPOSE["services"]["server"]["command"]
    command = cli.load_all()[name]
    options = {text for parameter in command.params for text in parameter.opts}
    passed = {argument.partition("=")[0] for argument in arguments}
    assert passed <= options
    assert {"--executor", "--insecure"} <= passed


def test_server_is_confined() -> None:
    """The server can write only to its repository and /tmp, and has no capabilities."""
    server = COMPOSE["services"]["server"]
    assert server["read_only"]
    assert (server["tmpfs"], server["cap_drop"]) == (["/tmp"], ["ALL"])  # noqa: S108  # the container's
    assert server["volumes"] == ["repository:/repository"]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_only_this_host_can_connect(service: str) -> None:
    """Ports are published on the loopback; mounted files and volumes exist."""
    for port in COMPOSE["services"][service].get("ports", []):
        assert port.startswith("127.0.0.1:")
    for volume in COMPOSE["services"][service].get("volumes", []):
        source = volume.partition(":")[0]
        assert (
            (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
        )


def test_file_contains_no_password() -> None:
    """The password comes from the environment, without a default."""
    environment = COMPOSE["services"]["postgres"]["environment"]
    assert environment["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
