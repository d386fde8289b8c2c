"""Static files of the console, a web page at ``/`` that calls the HTTP/JSON API."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

HEADERS = {
    # Texts become markup nowhere: `require-trusted-types-for` refuses innerHTML and the like.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src blob: data:; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks with the ETag whether its copy is the newest
}


def routes() -> list[Route]:
    """Return a route for each file; they are read now, and no path of a request is one on disk."""
    folder = resources.files("topwork.gateway").joinpath("console")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    found = [Route(f"/console/{name}", _answer(name, content)) for name, content in files.items()]
    return [Route("/", _answer(INDEX, files[INDEX])), *found]


def _answer(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    media_type = MEDIA_TYPES[PurePath(name).suffix]

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer
