"""Dockerfile: environment variables, packages, health check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from topwork.cli.commands import cli
from topwork.cli.serve import serve

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "Dockerfile").read_text()
SERVER = TEXT[TEXT.index("FROM runtime AS server") :].split("\n\n\n")[0].replace("\\\n", " ")
VARIABLES = dict(re.findall(r"(TOPWORK_[A-Z_]+)=(\S+)", SERVER))


def test_variables_are_options() -> None:
    """Every TOPWORK_ variable is an option of a command."""
    assert len(VARIABLES) > 5
    options = {
        f"TOPWORK_{command.name}_{parameter.name}".upper()
        for command in cli.load_all().values()
        for parameter in command.params
    }
    assert VARIABLES.keys() <= options


def requirements(directory: Path, environment: str, **arguments: str) -> set[str]:
    """Return the packages of an environment in a build with these arguments."""
    (directory / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (program,) = re.findall(r"RUN python3 -c '(.*?)'", TEXT.replace("\\\n", ""))
    subprocess.run(
        [sys.executable, "-c", program], cwd=directory, check=True, env={**os.environ, **arguments}
    )
    listed = (directory / f"{environment}.txt").read_text()
    return set(re.findall(r"^[\w-]+", listed, re.MULTILINE))


@pytest.mark.parametrize(
    ("environment", "backend"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")]
)
def test_requirements_of_the_environment_are_those_of_the_extra(
    tmp_path: Path, environment: str, backend: str
) -> None:
    """The list for pip has all packages of the extra, without topwork itself."""
    names = requirements(tmp_path, environment)
    assert {"grpcio", "dbos", "numpy", backend} <= names
    assert "topwork" not in names
    assert "tokenizers" not in names


def test_an_image_may_have_further_extras(tmp_path: Path) -> None:
    """The build argument EXTRAS adds their packages."""
    names = requirements(tmp_path, "cpu", EXTRAS="text signing")
    assert {"tokenizers", "cryptography", "onnxruntime"} <= names


def test_health_check_uses_the_health_port() -> None:
    """The check queries the health port on the loopback, which is always plaintext."""
    port = VARIABLES["TOPWORK_SERVE_HEALTH_PORT"]
    assert VARIABLES["TOPWORK_HEALTH_ADDRESS"] == f"127.0.0.1:{port}"
    assert 'CMD ["topwork", "health"]' in SERVER


def test_plaintext_is_not_the_default(tmp_path: Path) -> None:
    """Other hosts can reach the image's address, and ``--insecure`` is off."""
    variables = {**VARIABLES, "TOPWORK_SERVE_REPOSITORY": str(tmp_path)}
    shown = CliRunner().invoke(
        serve, ["--print-config"], env=variables, auto_envvar_prefix="TOPWORK_SERVE"
    )
    assert shown.exit_code == 0, shown.output
    assert '"address": "0.0.0.0:50051"' in shown.output
    assert '"insecure": false' in shown.output
