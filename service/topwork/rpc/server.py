"""Server process: makes its parts, starts them in order and stops them in reverse order."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from functools import partial
from typing import NoReturn
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
import uvloop
from google.longrunning import operations_pb2_grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from topwork.access.access_file import Access
from topwork.changes import worker
from topwork.changes.database import database_url
from topwork.changes.evaluations import check_evaluation
from topwork.changes.executors import check_executor
from topwork.changes.intake import Intake
from topwork.changes.lifecycle import Lifecycle, store_bundled_backbone
from topwork.changes.monitor import Monitor
from topwork.changes.operations import Operations
from topwork.changes.quota import Quotas
from topwork.changes.uploads import Uploads
from topwork.config import ServeConfig
from topwork.errors import NotReady, Unavailable
from topwork.inference import inference_service_pb2, inference_service_pb2_grpc
from topwork.review.answers import RecentAnswers
from topwork.review.candidates import Candidates
from topwork.review.capture import Capture
from topwork.review.labelling import Labelling
from topwork.rpc import listening, options
from topwork.rpc.forwarding import Forwarding
from topwork.rpc.gateway import Gateway
from topwork.rpc.health import Health
from topwork.rpc.interceptor import Interceptor
from topwork.rpc.open_inference.servicer import OpenInferenceServicer
from topwork.rpc.servicers.classifier import ClassifierServicer
from topwork.rpc.servicers.examples import ExampleViews
from topwork.rpc.servicers.models import ModelServicer
from topwork.rpc.servicers.operations import OperationsServicer, OperationViews
from topwork.rpc.servicers.review import ReviewServicer
from topwork.rpc.spans import open_spans
from topwork.rpc.tls import Certificates
from topwork.runtime import logs
from topwork.runtime.backend import software_versions
from topwork.runtime.supervisor import Supervisor
from topwork.serving.classifier import Classifier
from topwork.serving.encoders.choice import make_encoder
from topwork.serving.examples import Examples
from topwork.serving.explanation.explainer import Explainer
from topwork.serving.explanation.mapped_backbones import MappedBackbones
from topwork.serving.registry import Registry
from topwork.telemetry import Telemetry
from topwork.v1 import (
    classifier_service_pb2,
    classifier_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    review_service_pb2,
    review_service_pb2_grpc,
)
from topwork.wire.forwarding import read_key

log = structlog.get_logger(__name__)

SERVICES = (
    classifier_service_pb2.DESCRIPTOR.services_by_name["ClassifierService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    review_service_pb2.DESCRIPTOR.services_by_name["ReviewService"].full_name,
    "google.longrunning.Operations",
    inference_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)


STALL_SECONDS = 30.0
"""Raising it makes health wait longer before a hanging backbone is NOT_SERVING."""

STREAM_IMAGES = 16
"""Raising it lets one StreamClassify call have more images a core in flight."""

LAST_SECONDS = 0.2
"""Raising it gives the last answers of the grace period longer to be sent."""

CLOSING_SECONDS = 10.0
"""Raising it gives a hanging disk longer after the grace period before the process ends."""


class Server:
    """All parts of one serving process."""

    def __init__(self, config: ServeConfig) -> None:
        limits = config.limits
        url = config.database or database_url(config.repository)
        repository = config.open_repository(publishes=False)
        self._config = config
        self._repository = repository
        self._telemetry = Telemetry(models=config.metric_models, model_labels=config.metric_labels)
        self._telemetry.build(software_versions())
        self._spans = open_spans(config.otlp_endpoint)
        self._operations = Operations(url, repository, limits)
        encoder = make_encoder(
            provider=config.provider,
            cores=config.cores,
            limits=limits,
            log_format=config.log_format,
        )
        self._registry = Registry(
            repository,
            encoder,
            telemetry=self._telemetry,
            head_bytes=config.head_megabytes * 10**6,
        )
        answers = RecentAnswers()
        self._capture = Capture(repository, answers, limits, self._telemetry, cores=config.cores)
        self._classifier = Classifier(
            self._registry,
            encoder,
            limits=limits,
            cores=config.cores,
            queue_limit=config.queue_limit,
            telemetry=self._telemetry,
            trace=self._spans,
            reviewer=self._capture,
        )
        self._worker = Supervisor("topwork-worker", worker.run, config)
        if config.worker:
            self._telemetry.watch(
                "topwork_worker_up", "1 if the worker beside the server works.", self._works
            )
        views = OperationViews(
            repository, self._registry, self._operations, most_watches=limits.max_watches
        )
        examples = Examples(repository)
        quotas = Quotas(repository, limits)
        self._monitor = Monitor(
            repository,
            self._operations,
            quotas,
            models=self._registry.models,
            most_models=config.metric_models,
            limits=limits,
            telemetry=self._telemetry,
        )
        intake = Intake(
            self._registry,
            examples,
            self._operations,
            Uploads(repository, limits),
            quotas,
            limits,
            partial(check_evaluation, repository),
        )
        self._classifier_servicer = ClassifierServicer(
            self._classifier,
            Explainer(self._classifier, MappedBackbones(repository, encoder), examples),
            most_seconds=config.max_seconds,
            stream_window=STREAM_IMAGES * config.cores,
            most_streams=limits.max_streams,
        )
        self._model_servicer = ModelServicer(
            repository,
            self._registry,
            views,
            ExampleViews(repository, self._registry, examples),
            intake,
            Lifecycle(repository.storage, config.signing, most=limits.max_models),
            self._classifier.statistics,
            limits,
        )
        self._review_servicer = ReviewServicer(
            repository,
            self._registry,
            views,
            Candidates(repository, self._registry),
            self._capture,
            answers,
            Labelling(repository, self._registry, intake, self._operations, limits),
            limits,
        )
        self._operations_servicer = OperationsServicer(views)
        self._open_inference_servicer = OpenInferenceServicer(
            repository,
            self._registry,
            self._classifier,
            limits=limits,
            most_seconds=config.max_seconds,
            ready=self._classifies,
        )
        self._access = Access(config.access)
        self._gateway = Gateway(config)
        forwarding = Forwarding([self._gateway.secret, read_key(config.gateway_key)])
        self._interceptor = Interceptor(self._telemetry, self._access, self._spans, forwarding)
        self._grpc: grpc.aio.Server | None = None
        self._health_grpc: grpc.aio.Server | None = None
        self._certificates: Certificates | None = None
        self._metrics: WSGIServer | None = None
        classify, models, review, operations, inference = SERVICES
        self._health = Health(
            {
                "": self._classifies,
                classify: self._classifies,
                models: self._works,
                review: self._works,
                operations: self._works,
                inference: self._classifies,
            }
        )

    async def start(self) -> int:
        """Load and warm all models, then open the port and return its number.

        Raises Unavailable if a port cannot be opened or the bundled backbone cannot be stored,
        Corrupt if that is damaged, NotReady if the provider does not work,
        InvalidInput if the certificate, the access file or the worker's name is invalid, or if
        plaintext would leave this host.
        """
        self._certificates = listening.certificates(self._config)
        listening.check_ports(self._config)
        self._gateway.open()
        if self._config.worker:
            check_executor(self._config.executor)
        await self._access.start()
        if (bundled := self._config.bundled_backbone) is not None:
            await asyncio.to_thread(store_bundled_backbone, self._repository, bundled)
        await self._classifier.start()
        await self._operations.start()
        await self._registry.start()  # before the worker, which would disturb its measurements
        await asyncio.to_thread(self._capture.start)
        if self._config.worker:
            self._worker.start()
        self._grpc = self._make_grpc_server()
        port = listening.open_ports(self._grpc, self._config, self._certificates)
        if self._gateway.server_address:
            listening.open_port(self._grpc, self._gateway.server_address, None)
        self._health_grpc = self._make_health_server()
        if self._config.metrics_port is not None:
            await self._monitor.start()
        self._serve_metrics()
        await self._health.start()
        await self._grpc.start()
        if self._health_grpc is not None:
            await self._health_grpc.start()
        self._gateway.start()
        log.info("ready", port=port, models=len(self._registry.models()))
        return port

    async def aclose(self) -> None:
        """Report NOT_SERVING, wait for calls in flight within the grace period, close all parts."""
        if self._grpc is not None:
            await self._health.aclose()
            self._operations.end_watches()
            self._classifier_servicer.end_streams()
            began = asyncio.get_running_loop().time()
            await self._gateway.aclose()  # first, while the server still takes its calls
            left = self._config.grace_seconds + began - asyncio.get_running_loop().time()
            stopped = asyncio.ensure_future(self._grpc.stop(max(left, 0.0)))
            idle = asyncio.ensure_future(self._interceptor.calls.idle.wait())
            await asyncio.wait((stopped, idle), return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            # The calls that are left watch health or use reflection, and never end.
            await self._grpc.stop(LAST_SECONDS)
            await stopped
        self._gateway.remove()
        if self._health_grpc is not None:  # up to here it reported NOT_SERVING
            await self._health_grpc.stop(LAST_SECONDS)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.shutdown)
            self._metrics.server_close()
        await asyncio.to_thread(self._capture.close)
        await self._monitor.aclose()
        await self._registry.aclose()
        await self._classifier.aclose()
        await self._worker.aclose()
        await self._access.aclose()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)
        await self._operations.aclose()

    def _classifies(self) -> bool:
        return self._classifier.works() and self._classifier.stalled_seconds() < STALL_SECONDS

    def _works(self) -> bool:
        return self._worker.works() or not self._config.worker

    def _make_health_server(self) -> grpc.aio.Server | None:
        if not self._config.health_port:
            return None
        # A separate interceptor, since each caches the methods of its port.
        interceptor = Interceptor(self._telemetry, self._access)
        server = grpc.aio.server(
            interceptors=[interceptor], options=options.of_server(options.HEALTH_BYTES)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        port = listening.open_port(server, self._config.health_port, None)
        log.info("health port", port=port)
        return server

    def _serve_metrics(self) -> None:
        if (address := listening.metrics_address(self._config)) is None:
            return
        try:
            self._metrics, _ = self._telemetry.serve(address.host, address.port)
        except OSError as error:
            raise Unavailable(f"cannot answer for metrics on {address}: {error}") from error
        log.info("metrics", port=self._metrics.server_port)

    def _make_grpc_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=options.of_server(
                self._config.limits.max_message_bytes,
                connection_seconds=self._config.connection_seconds,
                channelz=self._config.channelz,
            ),
        )
        self.register(server)
        return server

    def register(self, server: grpc.aio.Server) -> None:
        """Add all services to a server. Each method has a row in ``access.rules``."""
        classifier_service_pb2_grpc.add_ClassifierServiceServicer_to_server(
            self._classifier_servicer, server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self._model_servicer, server)
        review_service_pb2_grpc.add_ReviewServiceServicer_to_server(self._review_servicer, server)
        operations_pb2_grpc.add_OperationsServicer_to_server(self._operations_servicer, server)
        inference_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            self._open_inference_servicer, server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        if self._config.reflection:
            reflection.enable_server_reflection(
                (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
            )
        if self._config.channelz:
            _add_channelz(server)


def _add_channelz(server: grpc.aio.Server) -> None:
    try:
        from grpc_channelz.v1 import channelz
    except ImportError as error:
        raise NotReady("channelz needs the extra: topwork[channelz]") from error
    channelz.add_channelz_servicer(server)


def run(config: ServeConfig) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then end this process with status 0.

    Raises the errors of Server.start.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))
        logs.exit_process(0)


async def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully. Signals during start end the process."""
    server = Server(config)
    stopping = asyncio.Event()
    _on_signal(logs.exit_process, 0)  # the start may wait for a disk or a database
    try:
        await server.start()
        _on_signal(stopping.set)
        # Objects of the start live on: without them a full collection takes 1 ms instead of 60.
        gc.collect()
        gc.freeze()
        await stopping.wait()
        log.info("stopping")
    finally:
        try:
            async with asyncio.timeout(config.grace_seconds + CLOSING_SECONDS):
                await server.aclose()
        except TimeoutError:
            log.error("not closed in time", seconds=config.grace_seconds + CLOSING_SECONDS)


def _on_signal(act: Callable[..., object], *arguments: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act, *arguments)
