"""A published report as a browser shows it: on a desk, on a phone, and without any network."""

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
      outside: all.filter((one) => !one.closest(".scroll > *"))
        .filter((one) => one.getBoundingClientRect().right > width + 0.5)
        .map((one) => one.tagName + " " + one.className),
      scrolling: all.filter((one) => one.matches(".scroll") && one.scrollWidth > one.clientWidth)
        .length,
      pictures: [...page.images].map((one) => one.naturalWidth),
    };
  });
  document.getElementById("result").textContent = JSON.stringify(frames);
});
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a browser made of the report."""

    phone: dict[str, Any]
    desk: dict[str, Any]
    unbounded: dict[str, Any]
    """On the phone too, but tables may not scroll by themselves."""
    screenshot: NDArray[np.uint8]
    """(H, W, 3), the three beside each other."""


@pytest.fixture(scope="module")
def browser() -> str:
    """Return the path of a browser; tests that need it are skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium, chromium-browser or google-chrome is installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of a second revision whose labels are hard to show, some of them wrong."""
    repository = Repository(tmp_path_factory.mktemp("report") / "repository")
    colours = ("amber", "blue", "crimson", "green", "violet")
    images = {label: pictures(colour, 20) for label, colour in zip(LABELS, colours, strict=True)}
    images[LABELS[1]] += pictures("amber", 3, start=50)
    tiny.publish(
        repository, "colours", tiny.embed_pictures({one: images[one] for one in LABELS[:4]})
    )
    return repository.report(
        tiny.publish(repository, "colours", tiny.embed_pictures(images))
    ).decode()


@pytest.fixture(scope="module")
def seen(browser: str, report: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Return what the browser shows, measured from outside: the report itself runs no script."""
    folder = tmp_path_factory.mktemp("seen")
    unbounded = report.replace("overflow-x: auto", "overflow-x: visible")
    assert unbounded != report
    frames = _frame(report, PHONE) + _frame(report, DESK) + _frame(unbounded, PHONE)
    (folder / "frames.html").write_text(
        '<!doctype html><meta charset="utf-8"><body style="margin:0;display:flex">'
        f'{frames}<script>{MEASURE}</script><pre id="result"></pre>',
        encoding="utf-8",
    )
    picture = folder / "seen.png"
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
    return Seen(phone=phone, desk=desk, unbounded=wide, screenshot=screenshot)


def test_nothing_overflows_sideways(seen: Seen) -> None:
    """On a desk and on a phone the page is as wide as the screen, whatever labels there are."""
    for shown, width in ((seen.phone, PHONE), (seen.desk, DESK)):
        assert shown["outside"] == []
        assert shown["width"] == shown["needed"] == width


def test_tables_scroll_by_themselves_on_a_phone(seen: Seen) -> None:
    """A phone is too narrow for some tables: they scroll in their own frame, or the page would."""
    assert seen.phone["scrolling"] > 0
    assert seen.unbounded["needed"] > PHONE


def test_thumbnails_are_decoded(seen: Seen) -> None:
    """The policy of the page lets the browser show the pictures that are in it."""
    assert seen.phone["pictures"]
    assert set(seen.phone["pictures"]) == {64}


@pytest.mark.parametrize(("left", "width"), [(0, PHONE), (PHONE, DESK)])
def test_the_page_is_not_blank(seen: Seen, left: int, width: int) -> None:
    """All the way down there is something to see, and it has colours."""
    shown = seen.screenshot[:, left : left + width]
    assert shown.shape == (HEIGHT, width, 3)
    for band in np.split(shown, 8):
        assert band.std() > 5
    assert len(np.unique(shown.astype(np.int32) @ (65536, 256, 1))) > 50


def test_the_policy_stops_all_fetching(browser: str, report: str, tmp_path: Path) -> None:
    """What would be smuggled into the page fetches nothing; without the policy it would."""
    policy = re.compile(r"<meta http-equiv=[^>]*>")
    with _listening() as (address, paths):
        for name, page in (("with", report), ("without", policy.sub("", report))):
            smuggled = (
                f'<img src="{address}/{name}.png"><script src="{address}/{name}.js"></script>'
                f'<link rel="stylesheet" href="{address}/{name}.css">'
                f'<iframe src="{address}/{name}.html"></iframe>'
            )
            file = tmp_path / f"{name}.html"
            file.write_text(page.replace("</main>", f"{smuggled}</main>"), encoding="utf-8")
            _browse(browser, file.as_uri())
    assert paths == {f"/without.{kind}" for kind in ("png", "js", "css", "html")}


def _frame(page: str, width: int) -> str:
    style = f"width:{width}px;height:{HEIGHT}px;border:0;flex:none"
    return f'<iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def _browse(browser: str, address: str, *options: str) -> str:
    """Return the document that the browser has once it loaded ``address``."""
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
    """Yield the address of a server on the loopback, and the paths that it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        asked: ClassVar[set[str]] = set()

        def do_GET(self) -> None:
            self.asked.add(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", Handler.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
