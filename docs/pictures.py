"""Draw docs/terminal.svg and docs/report.png from a real fit and a real server. Needs chromium.

Runs the commands of the README's tour on rendered flowers and records their output.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

DOCS = Path(__file__).parent
PREPARE = (
    "topwork-train demo-data photos --held-out held-out",
    "topwork-train fit photos --model flowers --repository repository"
    " --classes daisy,dandelion,roses,sunflowers",
)
SHOWN = (
    "topwork classify --model flowers held-out/tulips --top-k 3",
    "topwork add-class --model flowers --label tulips photos/tulips",
    "topwork classify --model flowers held-out/tulips --top-k 3",
)
COLUMNS = 100
LINES = 5
"""Lines to show of each classification."""


def main() -> None:
    """Run the tour in a temporary directory and write both images."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for command in PREPARE:
            _run(command, directory)
        server = subprocess.Popen(
            _argv("topwork serve --repository repository"),
            cwd=directory,
            env=_environment(directory),
            stderr=subprocess.DEVNULL,
        )
        try:
            _draw_terminal([(command, _run(command, directory)) for command in SHOWN])
        finally:
            server.terminate()
            server.wait()
        _draw_report(directory / "repository" / "models" / "flowers" / "1" / "report.html")


def _environment(directory: Path) -> dict[str, str]:
    address = f"unix:{directory}/socket"
    addresses = {"TOPWORK_ADDRESS": address, "TOPWORK_SERVE_ADDRESS": address}
    return {**os.environ, **addresses, "COLUMNS": str(COLUMNS)}


def _argv(command: str) -> list[str]:
    name, *rest = shlex.split(command)
    return [str(Path(sys.executable).parent / name), *rest]


def _run(command: str, directory: Path) -> str:
    return subprocess.run(
        _argv(command),
        cwd=directory,
        env=_environment(directory),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _draw_terminal(runs: list[tuple[str, str]]) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for command, printed in runs:
        console.print(Text(f"$ {command}", style="bold green"))
        lines = printed.rstrip().splitlines()
        if " classify " in command:
            lines = [*lines[:LINES], "..."]
        console.print(Text("\n".join(lines)), end="\n\n")
    drawn = console.export_svg(title="topwork", theme=MONOKAI)
    local = re.sub(
        r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL
    )  # without fonts from another host
    (DOCS / "terminal.svg").write_text(re.sub(r"[ \t]+$", "", local, flags=re.MULTILINE))


def _draw_report(report: Path) -> None:
    picture = DOCS / "report.png"
    subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--window-size=960,1690",
            f"--screenshot={picture}",
            report.as_uri(),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    with Image.open(picture) as image:
        image.quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
