"""Node client of docs/tutorial-client.md, made from .proto files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from topwork_trainer import commands
from topwork_trainer.demo.story import hold_out

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial-client.md").read_text()
SECTION = PAGE[PAGE.index("## In another language") : PAGE.index("## In JSON")]


def block(start: str) -> str:
    """Return the page's block that begins with ``start``."""
    (text,) = re.findall(
        rf"^```\w+\n({re.escape(start)}.*?)^```$", SECTION, re.MULTILINE | re.DOTALL
    )
    return str(text)


@pytest.mark.network
@pytest.mark.skipif(not shutil.which("npm"), reason="Node and npm are not installed")
def test_node_adds_a_class_and_classifies(
    new_repository: Callable[[], Path], rendered: Path, tmp_path: Path
) -> None:
    """The page's commands end with the right label of a held-out photo."""
    shutil.copytree(rendered, tmp_path / "photos")
    hold_out(tmp_path / "photos", tmp_path / "held-out")
    repository = new_repository()
    fit = ("fit", tmp_path / "photos", "--model", "flowers", "--repository", repository, "--json")
    commands.run("topwork_trainer", *fit)
    with commands.serving(repository, tmp_path / "serve.log") as served:

        def shell(script: str) -> subprocess.CompletedProcess[str]:
            environment = {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "TOPWORK_ADDRESS": served.address,
                "npm_config_cache": str(tmp_path / "npm"),
            }
            return subprocess.run(
                ["/bin/bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        install, *rest = block("npm install").splitlines()
        if (done := shell(install)).returncode:
            pytest.skip(f"npm cannot install: {done.stderr.splitlines()[:1]}")
        example = block("import {").replace("127.0.0.1:50051", served.address)
        (tmp_path / "add-class.mjs").write_text(example)
        done = shell("\n".join([block("topwork proto"), *rest, block("node ")]))
    assert done.returncode == 0, done.stderr
    assert re.search(r"label: 'tulips', probability: 0\.[5-9]", done.stdout)
