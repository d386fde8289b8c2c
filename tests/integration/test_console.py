"""The console's files as the gateway serves them; test_console.py of e2e uses them in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.http_calls import ask
from support.servers import Running

import topwork.gateway
from topwork.gateway import pages

FOLDER = Path(topwork.gateway.__path__[0]) / "console"
FILES = sorted(path.name for path in FOLDER.iterdir())
MOST_BYTES = 200_000


@pytest.mark.parametrize("path", ["/", *(f"/console/{name}" for name in FILES)])
def test_file_has_a_type_and_a_strict_policy(server: Running, path: str) -> None:
    """Nothing is loaded from elsewhere or inline, sniffed, or shown in a frame."""
    answer = ask(server.http, path)
    assert answer.code == 200
    policy = answer.headers["content-security-policy"].split("; ")
    for directive in (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob: data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ):
        assert directive in policy
    assert len(policy) == 11
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    suffix = Path(path).suffix or ".html"
    assert answer.headers["content-type"].startswith(pages.MEDIA_TYPES[suffix])


def test_copy_in_the_browser_is_checked_by_its_content(server: Running) -> None:
    """A browser asks each time, and gets the file only if its content has changed."""
    first = ask(server.http, "/console/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = ask(server.http, "/console/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.code, again.body) == (304, b"")
    other = ask(server.http, "/console/api.js", headers={"if-none-match": first.headers["etag"]})
    assert other.code == 200


def test_images_of_the_api_are_not_stored(server: Running) -> None:
    """Previews of training images come with no-store, unlike the console's files."""
    answer = ask(server.http, "/v1/models/colours/examples?view=EXAMPLE_VIEW_FULL&pageSize=1")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/console/../pages.py", 404),
        ("/console/%2e%2e/pages.py", 404),
        ("/console/..%2fpages.py", 400),
        ("/console//etc/passwd", 400),
        ("/console/", 404),
        ("/console/app.js/", 404),
        ("/console", 404),
        ("/index.html", 404),
    ],
)
def test_other_paths_are_no_files(server: Running, path: str, code: int) -> None:
    """A path is one of the files' names, or nothing."""
    assert ask(server.http, path).code == code


def test_files_are_only_read(server: Running) -> None:
    """A form that is sent to the page by mistake is refused."""
    assert ask(server.http, "/", body=b"token=x").code == 405


def test_markup_has_no_script_or_style_of_its_own() -> None:
    """The page's markup refers to files, and has no handlers, as the policy demands."""
    markup = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script[^>]*>[^<]", markup) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", markup, re.IGNORECASE) == []
    for name in re.findall(r'(?:src|href)="/console/([^"]+)"', markup):
        assert name in FILES


@pytest.mark.parametrize("name", FILES)
def test_file_is_small_and_refers_to_nothing_elsewhere(name: str) -> None:
    """No file has an address of another host, and modules import modules beside them."""
    text = (FOLDER / name).read_text()
    addresses = re.findall(r"(?:https?:|\bwss?:)?//[\w.-]+\.\w+", text)
    assert [found for found in addresses if found != "http://www.w3.org"] == []
    assert "@import" not in text
    assert "url(" not in text
    for module in re.findall(r'(?:from|import\() ?"([^"]+)"', text):
        assert module.removeprefix("./") in FILES


def test_first_view_is_small() -> None:
    """All files together, as a first visit loads them, are shorter than 200 KB."""
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= MOST_BYTES


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_script_makes_no_markup_of_text_and_stores_nothing(name: str) -> None:
    """Labels and file names become text nodes, and the token stays in memory."""
    text = (FOLDER / name).read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "createContextualFragment",
        "srcdoc",
        "eval(",
        "new Function",
        "localStorage",
        "sessionStorage",
        "document.cookie",
        "indexedDB",
    ):
        assert word not in text
