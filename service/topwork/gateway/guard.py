"""ASGI middleware around all routes: refuses hostile requests, adds headers, answers errors."""

from __future__ import annotations

import re
from collections.abc import Collection
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from topwork.client.calls import CallFailed
from topwork.errors import TopworkError
from topwork.gateway import errors
from topwork.gateway.errors import HttpError
from topwork.gateway.inbox import ClientLeft
from topwork.wire import status as statuses

log = structlog.get_logger("topwork.gateway")

_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of each response that has no others of these names."""

_ENCODED = re.compile(rb"%(?:2f|5c|00)|//|\\", re.IGNORECASE)
"""Parts of a path that proxies and servers understand differently."""

_SAFE = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Outermost application but for CORS."""

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str] | None, origins: Collection[str]
    ) -> None:
        """Take the accepted ``hosts`` without ports (None: any), and other sites' ``origins``."""
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # the router then raises HTTPException
        has_started = False
        has_body = _has_body(Headers(scope=scope))

        async def receiving() -> Message:
            nonlocal has_body
            message = await receive()
            has_body = bool(message.get("more_body", False))
            return message

        async def sending(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if has_body and scope["method"] not in _SAFE:
                    # The rest of the body is not read.
                    headers["connection"] = "close"
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receiving, sending)
        except ClientLeft:
            pass
        except Exception as error:
            if has_started:
                raise
            response = self._response(error, scope)
            await response(scope, receiving, sending)

    def _check(self, scope: Scope) -> None:
        """Refuse ambiguous paths, other host names, and writes by other sites. Raises HttpError."""
        if _ENCODED.search(scope["raw_path"]):
            raise HttpError(
                400, "the path has an encoded or empty segment", reason="PATH_AMBIGUOUS"
            )
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            raise HttpError(400, "the body has two lengths", reason="LENGTH_AMBIGUOUS")
        if headers.get("content-encoding", "identity") != "identity":
            raise HttpError(415, "send the body without Content-Encoding", reason="MEDIA_TYPE")
        host = headers.get("host", "")
        name = re.sub(r":\d*$", "", host).lower()
        if self._hosts is not None and name not in self._hosts:
            raise HttpError(
                421,
                f"this server is not {host[:80]!r} (DNS rebinding?): see --http-hosts",
                reason="HOST_UNKNOWN",
            )
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE or origin in self._origins:
            return
        if origin != f"{scope['scheme']}://{host}" and origin != f"https://{host}":
            raise HttpError(
                403,
                f"a page of {origin[:80]!r} may not change anything here",
                reason="CROSS_ORIGIN",
            )

    def _response(self, error: Exception, scope: Scope) -> Response:
        """Return the response to a failed request; log errors that the server does not log."""
        if isinstance(error, HTTPException):
            error = _of_router(error, scope)
        if not isinstance(error, TopworkError):
            log.error("unexpected error", path=scope["path"], exc_info=error)
            return Response(errors.body(statuses.internal(), 500), 500, {}, "application/json")
        response = errors.to_response(error, only_text=scope["path"].startswith("/v2"))
        if not isinstance(error, CallFailed):
            log.info(
                "refused",
                verb=scope["method"],
                path=scope["path"][:200],
                code=response.status_code,
                reason=error.reason,
                error=str(error),
                peer=":".join(map(str, scope["client"] or ())),
            )
        return response


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _of_router(error: HTTPException, scope: Scope) -> TopworkError:
    path = f"{scope['method']} {scope['path'][:200]}"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {})["Allow"]
        return HttpError(
            405,
            f"there is no {path}; its methods are {allowed}",
            reason="METHOD_UNKNOWN",
            allow=allowed,
        )
    return HttpError(404, f"there is no {path}; see /openapi.json", reason="PATH_UNKNOWN")
