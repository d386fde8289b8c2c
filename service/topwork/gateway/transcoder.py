"""Routes of the v1 API: transcodes HTTP/JSON to gRPC by the google.api.http rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from topwork.gateway.backend import Backend, Sending, finish
from topwork.gateway.bodies import RequestReader
from topwork.gateway.inbox import Inbox, Memory
from topwork.gateway.json_mapping import to_json
from topwork.gateway.methods import Method
from topwork.gateway.streams import END, EVENTS, LINES, StreamedResponse

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Segment(Convertor[str]):
    """A segment of a path without ``:``, which precedes the name of a custom method."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        """See Starlette."""
        return value

    def to_string(self, value: str) -> str:
        """See Starlette."""
        return value


def routes(methods: list[Method], backend: Backend, memory: Memory) -> list[Route]:
    """Return a route for each path; it has a handler for each HTTP method."""
    handlers: dict[str, dict[str, Handler]] = defaultdict(dict)
    for method in methods:
        handlers[method.template.path][method.verb] = _handler(method, backend, memory)
    register_url_convertor("segment", Segment())
    return [
        Route(path.replace("}", ":segment}"), _by_verb(found), methods=list(found))
        for path, found in handlers.items()
    ]


def _by_verb(handlers: dict[str, Handler]) -> Handler:
    async def answer(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return answer


def _handler(method: Method, backend: Backend, memory: Memory) -> Handler:
    reader = RequestReader(method)

    async def one(request: Request) -> Response:
        """Answer with one message."""
        inbox = Inbox(request, memory)
        sending = None
        try:
            if method.reads_stream:
                sending = Sending(reader.messages(request, inbox))
                call = backend.begin(method, sending, request)
            else:
                call = backend.begin(method, await reader.message(request, inbox), request)
            message = await finish(call, inbox, sending)
        finally:
            inbox.close()
        return Response(to_json(message), media_type="application/json")

    async def many(request: Request) -> Response:
        """Answer with a stream of messages, after the first of them."""
        if request.headers.get("last-event-id") == END:
            return Response(status_code=204)
        inbox = Inbox(request, memory)
        sending = None
        call = None
        try:
            if method.reads_stream:
                sending = Sending(reader.messages(request, inbox))
                call = backend.begin(method, sending, request)
            else:
                call = backend.begin(method, await reader.message(request, inbox), request)
            first = await finish(call.read(), inbox, sending)
        except BaseException:
            if call is not None:
                call.cancel()
            inbox.close()
            raise
        wants_lines = method.reads_stream or LINES in request.headers.get("accept", "")
        kind = LINES if wants_lines else EVENTS
        return StreamedResponse(call, first, inbox, sending, kind, backend.stopping)

    return many if method.writes_stream else one
