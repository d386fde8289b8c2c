"""Probes of the gateway, and the description of its API."""

from __future__ import annotations

from importlib import resources

from grpc_health.v1 import health_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from topwork.gateway.backend import Backend, finish
from topwork.gateway.inbox import Inbox, Memory
from topwork.gateway.methods import method_of

READY_SECONDS = 2.0
"""Raising it gives a busy server longer to say that it is ready."""

_CHECK = method_of(health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"])


def routes(backend: Backend, memory: Memory) -> list[Route]:
    """Return the routes of probes and of ``/openapi.json``."""
    description = resources.files("topwork.gateway").joinpath("openapi.json").read_bytes()

    async def live(_: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def ready(request: Request) -> Response:
        """Answer 200 while the server answers that it classifies, otherwise 503."""
        inbox = Inbox(request, memory)
        await inbox.read(0)
        call = backend.begin(_CHECK, health_pb2.HealthCheckRequest(), request, READY_SECONDS)
        answer = await finish(call, inbox)
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return Response("ok\n", media_type="text/plain")
        return Response("not ready\n", 503, media_type="text/plain")

    async def openapi(_: Request) -> Response:
        return Response(description, media_type="application/json")

    return [
        Route("/livez", live),
        Route("/readyz", ready),
        Route("/openapi.json", openapi),
    ]
