"""A published report in a browser: on a desktop, on a phone, and without network access."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support import tiny
from support.pictures import pictures

from topwork.bundle.store import Repository

PHONE, DESK, HEIGHT = 375, 1280, 4000
LABELS = ("<b>bold</b>", "a" * 100, "many words in a row, " * 4 + "and more", "שלום", "🌻")

MEASURE = """
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    const all = [...page.body.querySelectorAll("*")];
    return {
      width: width,
      needed: page.documentElement.scrollWidth,
      outside: all.filter((node) => !node.closest(".scroll > *"))
        .filter((node) => node.getBoundingClientRect().right > width + 0.5)
        .map((node) => node.tagName + " " + node.className),
      scrolling: all.filter((node) => node.matches(".scroll"))
        .filter((node) => node.scrollWidth > node.clientWidth).length,
      pictures: [...page.images].map((image) => image.naturalWidth),
    };
  });
  document.getElementById("result").textContent = JSON.stringify(frames);
});
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Measurements and a screenshot of the report in a browser."""

    phone: dict[str, Any]
    desk: dict[str, Any]
    unbounded: dict[str, Any]
    """As ``phone``, but with tables that do not scroll by themselves."""
    screenshot: NDArray[np.uint8]
    """(H, W, 3), the three pages side by side."""


@pytest.fixture(scope="module")
def browser() -> str:
    """Return the path of a browser; skip the test if none is installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium, chromium-browser or google-chrome is installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of a second revision with unusual and some wrong labels."""
    repository = Repository(tmp_path_factory.mktemp("report") / "repository")
    colours = ("amber", "blue", "crimson", "green", "violet")
    images = {label: pictures(colour, 20) for label, colour in zip(LABELS, colours, strict=True)}
    images[LABELS[1]] += pictures("amber", 3, start=50)
    first = {label: images[label] for label in LABELS[:4]}
    tiny.publish(repository, "colours", tiny.embed_pictures(first))
    return repository.report(
        tiny.publish(repository, "colours", tiny.embed_pictures(images))
    ).decode()


@pytest.fixture(scope="module")
def rendered(browser: str, report: str, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Render the report in iframes and measure them: the report itself runs no script."""
    folder = tmp_path_factory.mktemp("rendered")
    unbounded = report.replace("overflow-x: auto", "overflow-x: visible")
    assert unbounded != report
    frames = _frame(report, PHONE) + _frame(report, DESK) + _frame(unbounded, PHONE)
    (folder / "frames.html").write_text(
        '<!doctype html><meta charset="utf-8"><body style="margin:0;display:flex">'
        f'{frames}<script>{MEASURE}</script><pre id="result"></pre>',
        encoding="utf-8",
    )
    picture = folder / "rendered.png"
    dumped = _browse(
        browser,
        (folder / "frames.html").as_uri(),
        f"--screenshot={picture}",
        f"--window-size={2 * PHONE + DESK},{HEIGHT}",
    )
    result = re.search(r'<pre id="result">(.*)</pre>', dumped)
    assert result is not None
    phone, desk, wide = json.loads(html.unescape(result[1]))
    with Image.open(picture) as image:
        screenshot = np.asarray(image.convert("RGB"))
    return Rendered(phone=phone, desk=desk, unbounded=wide, screenshot=screenshot)


def test_the_page_does_not_overflow_horizontally(rendered: Rendered) -> None:
    """On a desktop and on a phone the page is as wide as the screen, whatever its labels."""
    for shown, width in ((rendered.phone, PHONE), (rendered.desk, DESK)):
        assert shown["outside"] == []
        assert shown["width"] == shown["needed"] == width


def test_tables_scroll_by_themselves_on_a_phone(rendered: Rendered) -> None:
    """Tables too wide for a phone scroll in their own frame instead of the page."""
    assert rendered.phone["scrolling"] > 0
    assert rendered.unbounded["needed"] > PHONE


def test_thumbnails_are_decoded(rendered: Rendered) -> None:
    """The page's content security policy allows its embedded pictures."""
    assert rendered.phone["pictures"]
    assert set(rendered.phone["pictures"]) == {64}


@pytest.mark.parametrize(("left", "width"), [(0, PHONE), (PHONE, DESK)])
def test_the_page_is_not_blank(rendered: Rendered, left: int, width: int) -> None:
    """Each part of the page has content, and the page has colours."""
    shown = rendered.screenshot[:, left : left + width]
    assert shown.shape == (HEIGHT, width, 3)
    for band in np.split(shown, 8):
        assert band.std() > 5
    assert len(np.unique(shown.astype(np.int32) @ (65536, 256, 1))) > 50


def test_the_security_policy_blocks_requests(browser: str, report: str, tmp_path: Path) -> None:
    """Injected elements fetch nothing; without the policy they do."""
    policy = re.compile(r"<meta http-equiv=[^>]*>")
    with _listening() as (address, paths):
        for name, page in (("with", report), ("without", policy.sub("", report))):
            injected = (
                f'<img src="{address}/{name}.png"><script src="{address}/{name}.js"></script>'
                f'<link rel="stylesheet" href="{address}/{name}.css">'
                f'<iframe src="{address}/{name}.html"></iframe>'
            )
            file = tmp_path / f"{name}.html"
            file.write_text(page.replace("</main>", f"{injected}</main>"), encoding="utf-8")
            _browse(browser, file.as_uri())
    assert paths == {f"/without.{kind}" for kind in ("png", "js", "css", "html")}


def _frame(page: str, width: int) -> str:
    style = f"width:{width}px;height:{HEIGHT}px;border:0;flex:none"
    return f'<iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def _browse(browser: str, address: str, *options: str) -> str:
    """Return the document that the browser has after loading ``address``."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [*command, "--disable-background-networking", "--dump-dom", *options, address],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


@contextmanager
def _listening() -> Iterator[tuple[str, set[str]]]:
    """Yield the address of a server on the loopback, and the requested paths."""

    class Handler(BaseHTTPRequestHandler):
        paths: ClassVar[set[str]] = set()

        def do_GET(self) -> None:
            self.paths.add(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Handler.paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
