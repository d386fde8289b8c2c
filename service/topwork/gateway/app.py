"""The ASGI application: all routes behind the guard."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp

from topwork.gateway import pages, probes, transcoder
from topwork.gateway.backend import Backend
from topwork.gateway.guard import Guard
from topwork.gateway.inbox import Memory
from topwork.gateway.methods import methods, services
from topwork.gateway.oip import OpenInference
from topwork.gateway.settings import GatewaySettings


def make_app(settings: GatewaySettings, backend: Backend) -> ASGIApp:
    """Return the application, which calls ``backend``."""
    memory = Memory()
    routes = [
        *transcoder.routes(methods(services()), backend, memory),
        *OpenInference(backend, memory).routes(),
        *probes.routes(backend, memory),
        *(pages.routes() if settings.console else ()),
    ]
    app: ASGIApp = Guard(
        Router(routes, redirect_slashes=False), hosts=settings.hosts, origins=settings.origins
    )
    if not settings.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("authorization", "content-type", "x-server-timeout", "traceparent"),
        expose_headers=("retry-after",),
    )
