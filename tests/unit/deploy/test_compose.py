"""compose.yaml is what compose takes, and runs topwork as it is."""

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
    """Hold a file against the schema of compose files."""
    schema = ("--builtin-schema", "vendor.compose-spec")
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_schema() -> None:
    """It is valid by the published schema."""
    done = check(ROOT / "compose.yaml")
    assert done.returncode == 0, done.stdout


def test_a_wrong_field_is_seen(tmp_path: Path) -> None:
    """The schema knows what there is not."""
    wrong = tmp_path / "compose.yaml"
    text = (ROOT / "compose.yaml").read_text()
    wrong.write_text(text.replace("read_only: true", "readonly: true", 1))
    assert check(wrong).returncode == 1


def test_the_server_is_told_what_it_knows() -> None:
    """Its arguments are options of `topwork serve`, and its worker has a name that stays."""
    name, *arguments = COMPOSE["services"]["server"]["command"]
    command = cli.load_all()[name]
    options = {text for parameter in command.params for text in parameter.opts}
    given = {argument.partition("=")[0] for argument in arguments}
    assert given <= options
    assert {"--executor", "--insecure"} <= given


def test_what_is_ours_runs_confined() -> None:
    """The server can write to its repository and to /tmp, and has no capability."""
    server = COMPOSE["services"]["server"]
    assert server["read_only"]
    assert (server["tmpfs"], server["cap_drop"]) == (["/tmp"], ["ALL"])  # noqa: S108  # its own
    assert server["volumes"] == ["repository:/repository"]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_only_this_host_can_connect(service: str) -> None:
    """Ports are published on the loopback, and what is mounted is there."""
    for port in COMPOSE["services"][service].get("ports", []):
        assert port.startswith("127.0.0.1:")
    for volume in COMPOSE["services"][service].get("volumes", []):
        source = volume.partition(":")[0]
        assert (
            (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
        )


def test_no_password_is_in_it() -> None:
    """The password comes from the environment, and there is none by default."""
    environment = COMPOSE["services"]["postgres"]["environment"]
    assert environment["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
