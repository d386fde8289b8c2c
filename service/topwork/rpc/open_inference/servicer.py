"""Servicer of inference.GRPCInferenceService (Open Inference Protocol)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

import topwork
from topwork.access.principals import caller
from topwork.bundle.manifest import BackboneInfo, Manifest, check_may_serve
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound, NotReady
from topwork.inference import inference_service_pb2 as pb
from topwork.inference import inference_service_pb2_grpc as pb_grpc
from topwork.limits import ServerLimits
from topwork.rpc.context import Context
from topwork.rpc.open_inference import answers, describe, tensors
from topwork.serving.classifier import Classifier
from topwork.serving.registry import Registry
from topwork.serving.statistics import RevisionStatistics

EXTENSIONS = ("classification", "model_configuration", "statistics")


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """The Open Inference Protocol over a Classifier and its Registry."""

    def __init__(
        self,
        repository: Repository,
        registry: Registry,
        classifier: Classifier,
        *,
        limits: ServerLimits,
        most_seconds: float,
        ready: Callable[[], bool],
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._classifier = classifier
        self._limits = limits
        self._most_seconds = most_seconds
        self._ready = ready

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        """See the contract."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """See the contract."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """See the contract."""
        try:
            await self._find(request.name, request.version)
        except (NotFound, NotReady, Corrupt):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """See the contract."""
        return pb.ServerMetadataResponse(
            name=describe.NAME, version=topwork.__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """See the contract."""
        return describe.to_metadata(*await self._find(request.name, request.version))

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        """See the contract."""
        wanted = tensors.wanted(request)
        found = await self._classifier.infer(
            _name(request.model_name, field="model_name"),
            tensors.images(request, self._limits),
            revision=_revision(request.model_version, field="model_version"),
            budget=min([self._most_seconds, *_limits_of(request, context)]),
            logits=any(output.name == "logits" for output in wanted),
            caller=caller().turns,
        )
        if request.raw_input_contents and not any(output.classes for output in wanted):
            return answers.to_response(request, wanted, found)
        # In a thread: with very many labels it would block the event loop.
        return await asyncio.to_thread(answers.to_response, request, wanted, found)

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """See the contract."""
        manifest, info = await self._find(request.name, request.version)
        return pb.ModelConfigResponse(config=describe.to_config(manifest, info, self._limits))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """See the contract."""
        if request.name or request.version:
            caller().check(_name(request.name, field="name"))
        if request.version:
            manifest, _ = await self._find(request.name, request.version)
            revisions_of = {manifest.model: [manifest.revision]}
        else:
            models = [request.name] if request.name else _visible(self._registry.models())
            revisions_of = {model: self._revisions(model) for model in models}
        statistics = self._classifier.statistics
        return pb.ModelStatisticsResponse(
            model_stats=[
                describe.to_statistics(
                    model, revision, statistics.of(model).get(revision, RevisionStatistics())
                )
                for model, revisions in revisions_of.items()
                for revision in revisions
            ]
        )

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """See the contract."""
        if request.repository_name:
            raise InvalidInput(
                f"there is no repository {request.repository_name[:80]!r}, only one without a name",
                field="repository_name",
            )
        index = pb.RepositoryIndexResponse.ModelIndex
        models = [
            index(name=model, version=str(self._registry.serving(model).revision), state="READY")
            for model in _visible(self._registry.models())
        ]
        if not request.ready:
            reason = "what should serve cannot be loaded; see the server's log"
            models += [
                index(name=model, state="UNAVAILABLE", reason=reason)
                for model in _visible(self._registry.unusable())
            ]
            reason = "it has too few labels to serve"
            models += [
                index(name=model, state="UNAVAILABLE", reason=reason)
                for model in _visible(self._registry.drafts())
            ]
        return pb.RepositoryIndexResponse(models=sorted(models, key=lambda model: model.name))

    async def _find(self, name: str, version: str) -> tuple[Manifest, BackboneInfo]:
        """Return a revision that may serve.

        Raises InvalidInput, NotFound, NotReady if the gate rejected it, and Corrupt.
        """
        revision = _revision(version, field="version")
        serving = self._registry.serving(_name(name, field="name"))
        return await asyncio.to_thread(self._read, serving, revision or serving.revision)

    def _read(self, serving: Manifest, revision: int) -> tuple[Manifest, BackboneInfo]:
        manifest = serving
        if revision != serving.revision:
            manifest = self._repository.manifest(serving.model, revision)
            check_may_serve(manifest)
        return manifest, self._repository.backbone(manifest)

    def _revisions(self, model: str) -> list[int]:
        """Return the revisions with statistics, and the serving one. Raises NotFound."""
        return sorted(
            {self._registry.serving(model).revision, *self._classifier.statistics.of(model)}
        )


def _visible(models: Iterable[str]) -> list[str]:
    """Return the models that the caller may use."""
    scope = caller().scope
    return [model for model in models if scope.has(model)]


def _name(name: str, *, field: str) -> str:
    if not name:
        raise InvalidInput(f"{field} is unset; it must be a model's name", field=field)
    return name


def _revision(version: str, *, field: str) -> int:
    """Return a revision number, 0 if ``version`` is empty. Raises InvalidInput."""
    if version and not (version.isascii() and version.isdigit() and len(version) < 10):
        raise InvalidInput(f"{field} {version[:80]!r} is no revision's number", field=field)
    return int(version or 0)


def _limits_of(request: pb.ModelInferRequest, context: Context) -> Iterator[float]:
    """Yield the client's limits in seconds: the deadline, and the parameter ``timeout``."""
    remaining = context.time_remaining()
    if remaining is not None:
        yield remaining
    if "timeout" in request.parameters:
        timeout = request.parameters["timeout"].int64_param
        if timeout < 1:
            raise InvalidInput(
                f"timeout is {timeout}; it must be an int64 of microseconds, at least 1",
                field="parameters",
            )
        yield timeout / 1e6
