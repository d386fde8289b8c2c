"""The page of `topwork export --browser` in headless Chromium."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import browsers

import topwork
from topwork.export.browser import VERSION
from topwork_trainer import commands

DRIVER = Path(__file__).parents[1] / "support" / "browser.mjs"
PACKAGES = (f"onnxruntime-web@{VERSION}", browsers.PLAYWRIGHT)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Static web server without a log."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Print nothing."""


@browsers.needs_browser
def test_page_gives_the_servers_labels(
    new_repository: Callable[[], Path], rendered: Path, tmp_path: Path
) -> None:
    """Offline, the page gives the server's labels; it loads nothing from elsewhere."""
    browsers.install(tmp_path, *PACKAGES)
    repository, page = new_repository(), tmp_path / "page"
    commands.run(
        "topwork_trainer",
        "fit",
        rendered,
        "--model",
        "flowers",
        "--repository",
        repository,
        "--json",
    )
    runtime = tmp_path / "node_modules" / "onnxruntime-web"
    options = ("--repository", repository, "--browser", page, "--onnxruntime-web", runtime)
    commands.run("topwork", "export", "flowers", "--json", *options)
    photos = sorted(rendered.glob("*/*.jpg"))[::3]
    handler = functools.partial(Quiet, directory=page)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        host = f"127.0.0.1:{server.server_port}"
        try:
            found = browsers.drive(
                DRIVER, tmp_path, f"http://{host}/", json.dumps([*map(str, photos)])
            )
        finally:
            server.shutdown()
    assert found["problems"] == []
    assert found["hosts"] == [host]
    assert found["camera"] == "Camera"
    assert found["dropped"] == found["best"][0]
    assert found["refused"].startswith("scan.dcm: this browser cannot decode this file")
    results = topwork.open(repository, "flowers").predict(photos)
    assert len(found["best"]) == len(photos) > 50
    for best, result in zip(found["best"], results, strict=True):
        assert best["label"] == result.predictions[0].label
        assert best["probability"] == pytest.approx(result.predictions[0].probability, abs=0.01)
        assert best["unknown"] == result.is_unknown
