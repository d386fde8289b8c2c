"""Time and bytes of the console's first view, and time from a mouse click until a class serves.

    PYTHONPATH=tests python -m benchmarks.console PHOTOS [--rounds 5]

PHOTOS is a folder with a folder of photos for each class. A model is fitted on all but the last
one, of which 30 photos are dropped on the page Teach of headless Chromium in each round. The clock
runs from the click on Publish until the serving pointer has moved, and until the page says so.
Needs Chromium, npm and the trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from support import browsers, servers

from topwork.runtime.cores import available_cores
from topwork_trainer import commands

DRIVER = Path(__file__).parents[1] / "support" / "console_speed.mjs"
MODEL = "flowers"
FEW = 30
"""Photos of the new class."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(arguments, Path(directory))


def measure(arguments: argparse.Namespace, root: Path) -> None:
    """Fit, serve, drive the browser, and print the table."""
    *known, new = sorted(path for path in arguments.photos.iterdir() if path.is_dir())
    photos = sorted(new.iterdir())
    dropped = []
    for place in range(arguments.rounds):
        folder = root / str(place) / new.name
        folder.mkdir(parents=True)
        for photo in photos[place * FEW : (place + 1) * FEW]:
            shutil.copy(photo, folder)
        dropped.append(str(folder))
    repository = root / "repository"
    commands.run(
        "topwork_trainer", "fit", arguments.photos, "--repository", repository, "--model", MODEL,
        "--classes", ",".join(folder.name for folder in known), "--no-cache", "--json",
    )  # fmt: skip
    browsers.install(root, browsers.PLAYWRIGHT, "axe-core@4.14.1")
    cores = available_cores()
    with servers.running(repository, http_port="127.0.0.1:0", cores=cores, forked=False) as server:
        url = f"http://{server.http}/"
        print(f"{cores} cores, load {os.getloadavg()[0]:.2f}")
        found = browsers.drive(DRIVER, root, url, MODEL, json.dumps(dropped))
    assert found["problems"] == [], found["problems"]
    print("| | median | rounds |\n| --- | --- | --- |")
    _row("first view, seconds", [view["seconds"] for view in found["views"]])
    _row("first contentful paint, seconds", [view["paint"] for view in found["views"]])
    _row("bytes transferred", [view["bytes"] for view in found["views"]], digits=0)
    _row("requests", [view["requests"] for view in found["views"]], digits=0)
    _row("click until the class serves, seconds", [row["serves"] for row in found["published"]])
    _row("click until the page says so, seconds", [row["shown"] for row in found["published"]])
    for stage in ("upload", "queued", "embedding", "solving", "publishing"):
        _row(f"of it {stage}, seconds", [row[stage] for row in found["published"]])


def _row(name: str, values: list[float], digits: int = 2) -> None:
    rounds = ", ".join(f"{value:.{digits}f}" for value in values)
    print(f"| {name} | {statistics.median(values):.{digits}f} | {rounds} |")


if __name__ == "__main__":
    main()
