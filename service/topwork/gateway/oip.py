"""Routes of the Open Inference Protocol, version 2, over its gRPC service."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from topwork.gateway import json_mapping, oip_tensors
from topwork.gateway.backend import Backend, finish
from topwork.gateway.bodies import INLINE_BYTES, JSON_BYTES, SMALL_BYTES
from topwork.gateway.inbox import Inbox, Memory
from topwork.gateway.methods import method_of
from topwork.inference import inference_service_pb2 as pb

_METHODS = {
    method.name: method_of(method)
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
}


class OpenInference:
    """Handlers of the paths below ``/v2``."""

    def __init__(self, backend: Backend, memory: Memory) -> None:
        self._backend = backend
        self._memory = memory

    def routes(self) -> list[Route]:
        """Return the routes; ``transcoder.routes`` registers the convertor of their segments."""
        routes = [
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/v2/models/stats", self._statistics),
        ]
        model = "/v2/models/{name:segment}"
        for path in (model, f"{model}/versions/{{version:segment}}"):
            routes += [
                Route(path, self._metadata),
                Route(f"{path}/ready", self._model_ready),
                Route(f"{path}/config", self._config),
                Route(f"{path}/stats", self._statistics),
                Route(f"{path}/infer", self._infer, methods=["POST"]),
            ]
        return routes

    async def _server(self, request: Request) -> Response:
        answer = await self._call(request, "ServerMetadata", pb.ServerMetadataRequest())
        answer.extensions.append("binary_tensor_data")  # which is this module's
        return _json(answer)

    async def _live(self, request: Request) -> Response:
        await self._call(request, "ServerLive", pb.ServerLiveRequest())
        return Response()

    async def _ready(self, request: Request) -> Response:
        answer = await self._call(request, "ServerReady", pb.ServerReadyRequest())
        return Response(status_code=200 if answer.ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        wanted = pb.ModelReadyRequest(**request.path_params)
        answer = await self._call(request, "ModelReady", wanted)
        return Response(status_code=200 if answer.ready else 400)

    async def _metadata(self, request: Request) -> Response:
        wanted = pb.ModelMetadataRequest(**request.path_params)
        return _json(await self._call(request, "ModelMetadata", wanted))

    async def _config(self, request: Request) -> Response:
        wanted = pb.ModelConfigRequest(**request.path_params)
        return _json((await self._call(request, "ModelConfig", wanted)).config)

    async def _statistics(self, request: Request) -> Response:
        wanted = pb.ModelStatisticsRequest(**request.path_params)
        return _json(await self._call(request, "ModelStatistics", wanted))

    async def _index(self, request: Request) -> Response:
        def read(body: bytes) -> pb.RepositoryIndexRequest:
            wanted = pb.RepositoryIndexRequest()
            json_mapping.merge(json_mapping.parse(body) if body.strip() else {}, wanted)
            return wanted

        inbox = Inbox(request, self._memory)
        try:
            wanted = read(await inbox.read(SMALL_BYTES))
            answer = await self._finish(request, inbox, "RepositoryIndex", wanted)
        finally:
            inbox.close()
        return Response(
            json_mapping.dump([oip_tensors.plain(model) for model in answer.models]),
            media_type="application/json",
        )

    async def _infer(self, request: Request) -> Response:
        inbox = Inbox(request, self._memory)
        try:
            body = await inbox.read(JSON_BYTES)
            header = oip_tensors.header_length(
                request.headers.get(oip_tensors.HEADER_LENGTH), len(body)
            )
            # A long JSON would block the event loop.
            parse = asyncio.to_thread if header > INLINE_BYTES else _inline
            parsed = await parse(
                oip_tensors.parse,
                body,
                header,
                request.path_params["name"],
                request.path_params.get("version", ""),
            )
            answer = await self._finish(request, inbox, "ModelInfer", parsed.message)
            head, tail = await parse(oip_tensors.answer, answer, parsed)
        finally:
            inbox.close()
        if not tail:
            return Response(head, media_type="application/json")
        headers = {oip_tensors.HEADER_LENGTH: str(len(head))}
        return Response(head + tail, 200, headers, "application/octet-stream")

    async def _call(self, request: Request, name: str, message: Message) -> Any:
        inbox = Inbox(request, self._memory)
        await inbox.read(0)
        return await self._finish(request, inbox, name, message)

    async def _finish(self, request: Request, inbox: Inbox, name: str, message: Message) -> Any:
        return await finish(self._backend.begin(_METHODS[name], message, request), inbox)


async def _inline(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def _json(message: Message) -> Response:
    return Response(json_mapping.dump(oip_tensors.plain(message)), media_type="application/json")
