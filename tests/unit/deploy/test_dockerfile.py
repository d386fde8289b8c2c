"""The Dockerfile tells topwork what it knows, and asks for health where health is answered."""

from __future__ import annotations

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
    """Every variable is an option of the command that it is for."""
    assert len(VARIABLES) > 5
    options = {
        f"TOPWORK_{command.name}_{parameter.name}".upper()
        for command in cli.load_all().values()
        for parameter in command.params
    }
    assert VARIABLES.keys() <= options


@pytest.mark.parametrize(
    ("environment", "backend"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")]
)
def test_environment_has_what_a_server_needs(
    tmp_path: Path, environment: str, backend: str
) -> None:
    """What pip is asked for before the sources are there: all that the extra brings, but us."""
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (program,) = re.findall(r"RUN python3 -c '(.*?)'", TEXT.replace("\\\n", ""))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    names = re.findall(r"^[\w-]+", (tmp_path / f"{environment}.txt").read_text(), re.MULTILINE)
    assert {"grpcio", "dbos", "numpy", backend} <= set(names)
    assert "topwork" not in names


def test_health_is_asked_where_it_is_answered() -> None:
    """The check asks the port of health alone, on the loopback, which speaks plaintext always."""
    port = VARIABLES["TOPWORK_SERVE_HEALTH_PORT"]
    assert VARIABLES["TOPWORK_HEALTH_ADDRESS"] == f"127.0.0.1:{port}"
    assert 'CMD ["topwork", "health"]' in SERVER


def test_plaintext_is_not_the_default(tmp_path: Path) -> None:
    """As the image is, other hosts reach its address, and nothing says that they may."""
    variables = {**VARIABLES, "TOPWORK_SERVE_REPOSITORY": str(tmp_path)}
    shown = CliRunner().invoke(
        serve, ["--print-config"], env=variables, auto_envvar_prefix="TOPWORK_SERVE"
    )
    assert shown.exit_code == 0, shown.output
    assert '"address": "0.0.0.0:50051"' in shown.output
    assert '"insecure": false' in shown.output
