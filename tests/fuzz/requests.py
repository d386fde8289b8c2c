"""Fuzz target of requests: any message is answered, or refused with a TopworkError."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import quote

from google.longrunning import operations_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2

from fuzz import sandbox
from topwork.access.access_file import Access
from topwork.access.principals import set_caller
from topwork.bundle.documents import from_data, to_data
from topwork.bundle.manifest import Manifest
from topwork.bundle.signing.signatures import SigningFiles
from topwork.changes.evaluations import check_evaluation
from topwork.changes.intake import Intake
from topwork.changes.jobs import Job
from topwork.changes.lifecycle import Lifecycle
from topwork.changes.operations import Admit, Operations, no_operation
from topwork.changes.queue import OperationFilter
from topwork.changes.quota import Quotas
from topwork.changes.rows import OperationState, queued, subject_of
from topwork.changes.uploads import Uploads
from topwork.errors import ImageError, NotFound, TopworkError
from topwork.inputs.embeddings import EmbeddingSpec, checked
from topwork.inputs.spec import SentContent
from topwork.limits import ServerLimits
from topwork.rpc.context import Context
from topwork.rpc.servicers.classifier import ClassifierServicer
from topwork.rpc.servicers.examples import ExampleViews
from topwork.rpc.servicers.models import ModelServicer
from topwork.rpc.servicers.operations import OperationsServicer, OperationViews
from topwork.serving import classifier as classifying
from topwork.serving.backbones import LoadedBackbone
from topwork.serving.classifier import Classifier
from topwork.serving.classify_batch import Classified, Timings
from topwork.serving.examples import Examples
from topwork.serving.explanation.explainer import Explainer
from topwork.serving.registry import Registry
from topwork.serving.statistics import Statistics
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import classifier_service_pb2 as classify_pb
from topwork.v1 import evaluation_pb2 as evaluation_pb
from topwork.v1 import example_pb2 as example_pb
from topwork.v1 import input_pb2 as input_pb
from topwork.v1 import model_lifecycle_pb2 as lifecycle_pb
from topwork.v1 import model_service_pb2 as model_pb
from topwork.v1 import revision_pb2 as revision_pb
from topwork.wire import status as statuses

MOST_TRAILERS = 16_000
"""Maximum bytes of trailers; gRPC drops longer ones."""

ANYBODY = Access(None).caller("admin", (), dict, "ipv4:127.0.0.1:1")

SPACE = EmbeddingSpec(space="points", width=3)

LIMITS = ServerLimits(max_images_per_request=8, max_images_per_upload=8, min_free_bytes=0)


def call(content: bytes) -> None:
    """Call the method of the first byte's number with the other bytes as the message."""
    service = _service()
    method = service.methods[content[0] % len(service.methods)] if content else service.methods[0]
    request = method.kind()
    try:
        request.ParseFromString(content[1:])
    except DecodeError:
        return  # gRPC refuses it
    try:
        response = service.run(method, request)
    except TopworkError as error:
        _check(error)
    else:
        response.SerializeToString()
        if isinstance(response, classify_pb.StreamClassifyResponse):
            assert response.error.code != code_pb2.INTERNAL, "see the log"


def messages() -> list[bytes]:
    """Return valid requests of each method."""
    options = change_pb.ChangeOptions(expected_revision=1, validate_only=True)
    options.gate.max_old_class_drop = 0.1
    image = change_pb.TrainingImage(content=b"photo", display_name="a.jpg")
    name = {"model": "models/colours", "label": "blue", "options": options}
    identity = "5c2e9d46-1d5c-4a7b-9a52-3f0a1b2c3d4e"
    embedding = input_pb.Embedding(values=[1.0, float("nan"), -2.5], space="points")
    vector = input_pb.Input(embedding=embedding)
    others = [input_pb.Input(text="a"), input_pb.Input(audio=b"RIFF")]
    classify = classify_pb.ClassifyRequest(model="models/colours", images=[b"photo"], top_k=2)
    examples: dict[str, list[Message]] = {
        "Classify": [
            classify,
            classify_pb.ClassifyRequest(
                model="models/colours",
                inputs=[input_pb.Input(image=b"photo"), vector, *others],
            ),
        ],
        "StreamClassify": [
            classify_pb.StreamClassifyRequest(id=1, request=classify, timeout=Duration(seconds=1))
        ],
        "ListModels": [model_pb.ListModelsRequest(page_size=3)],
        "GetModel": [model_pb.GetModelRequest(name="models/colours")],
        "ListRevisions": [model_pb.ListRevisionsRequest(model="models/colours", page_size=3)],
        "GetReport": [revision_pb.GetReportRequest(name="models/colours/revisions/1/report")],
        "AddClass": [
            change_pb.AddClassRequest(
                config=change_pb.AddClassConfig(
                    model="models/colours", label="violet", request_id=identity, options=options
                ),
                images=[image, change_pb.TrainingImage(input=vector)],
            )
        ],
        "AddExamples": [
            change_pb.AddExamplesRequest(
                config=change_pb.AddExamplesConfig(**name),  # type: ignore[arg-type]  # fields by name
                images=[image, image],
            )
        ],
        "AddClasses": [
            change_pb.AddClassesRequest(
                config=change_pb.AddClassesConfig(
                    model="models/colours", labels=["blue", "violet"], request_id=identity
                ),
                images=[change_pb.TrainingImage(content=b"photo", label="blue"), image],
            )
        ],
        "RemoveClass": [change_pb.RemoveClassRequest(**name)],  # type: ignore[arg-type]  # the same
        "RenameClass": [change_pb.RenameClassRequest(**name, new_label="navy")],  # type: ignore[arg-type]  # the same
        "Retrain": [
            change_pb.RetrainRequest(model="models/colours", head="ridge", normalisation="l2")
        ],
        "ListExamples": [
            example_pb.ListExamplesRequest(
                model="models/colours",
                page_size=3,
                filter='suspect = false AND display_name = "a*" AND digest = "0*"',
                view=example_pb.EXAMPLE_VIEW_FULL,
            ),
            example_pb.ListExamplesRequest(
                model="models/colours", page_token=f"1.2.{'0' * 16}", revision=1
            ),
        ],
        "GetExample": [
            example_pb.GetExampleRequest(
                name=f"models/colours/examples/{'0' * 64}", label="blue", revision=1
            )
        ],
        "RemoveExamples": [
            change_pb.RemoveExamplesRequest(**name, digests=["0" * 64])  # type: ignore[arg-type]  # fields by name
        ],
        "MoveExamples": [
            change_pb.MoveExamplesRequest(**name, digests=["0" * 64])  # type: ignore[arg-type]  # the same
        ],
        "Evaluate": [
            evaluation_pb.EvaluateRequest(
                config=evaluation_pb.EvaluateConfig(
                    model="models/colours", evaluation_set="held-out", max_drop=0.1
                ),
                images=[
                    evaluation_pb.EvaluationImage(
                        content=b"photo", label="blue", columns={"camera": "north"}
                    )
                ],
            )
        ],
        "ListEvaluationSets": [evaluation_pb.ListEvaluationSetsRequest(model="models/colours")],
        "GetEvaluationSet": [
            evaluation_pb.GetEvaluationSetRequest(name="models/colours/evaluationSets/held-out")
        ],
        "ListEvaluations": [
            evaluation_pb.ListEvaluationsRequest(model="models/colours", evaluation_set="held-out")
        ],
        "GetEvaluation": [
            evaluation_pb.GetEvaluationRequest(
                name="models/colours/evaluationSets/held-out/evaluations/1"
            )
        ],
        "Rollback": [
            model_pb.RollbackRequest(model="models/colours", revision=1, validate_only=True)
        ],
        "PinRevision": [model_pb.PinRevisionRequest(model="models/colours", revision=1)],
        "CreateModel": [
            lifecycle_pb.CreateModelRequest(
                model="models/new", like="models/colours", head="ridge"
            ),
            lifecycle_pb.CreateModelRequest(
                model="models/newer",
                embedding=input_pb.EmbeddingSpace(space="points", width=3),
            ),
        ],
        "CopyModel": [
            lifecycle_pb.CopyModelRequest(source="models/colours", revision=1, model="models/copy")
        ],
        "UndeleteModel": [lifecycle_pb.UndeleteModelRequest(model="models/gone")],
        "ListBackbones": [lifecycle_pb.ListBackbonesRequest(page_size=3)],
        "ListOperations": [
            operations_pb2.ListOperationsRequest(
                filter='model = "models/colours" AND done = false', page_size=2
            ),
            operations_pb2.ListOperationsRequest(filter=r'label = "\"" AND kind=retrain'),
        ],
        "GetOperation": [operations_pb2.GetOperationRequest(name=f"operations/{identity}")],
        "WaitOperation": [
            operations_pb2.WaitOperationRequest(
                name=f"operations/{identity}", timeout=Duration(seconds=1)
            )
        ],
    }
    methods = [method.name for method in _service().methods]
    return [
        bytes([methods.index(method)]) + message.SerializeToString()
        for method, requests in examples.items()
        for message in requests
    ]


@functools.cache
def _service() -> _Service:
    return _Service()


def _check(error: TopworkError) -> None:
    """Fail if gRPC would drop the error's details."""
    status = statuses.from_error(error)
    details = len(base64.b64encode(status.SerializeToString()))
    trailers = details + len(quote(status.message))
    assert trailers < MOST_TRAILERS, f"{error.reason} takes {trailers} bytes"


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    kind: Callable[[], Message]
    call: Callable[[Any, Context], Any]
    streams: bool = False
    """True if the client streams."""


class _Context:
    """The part of gRPC's context that servicers use."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline."""
        return None


class _Service:
    """All servicers over a small repository, without a network, a database or a backbone."""

    def __init__(self) -> None:
        repository = sandbox.repository()
        registry = cast("Registry", _Registry())
        operations = cast("Operations", _Operations())
        views = OperationViews(repository, registry, operations, most_watches=1)
        examples = Examples(repository)
        intake = Intake(
            registry,
            examples,
            operations,
            Uploads(repository, LIMITS),
            Quotas(repository, LIMITS),
            LIMITS,
            partial(check_evaluation, repository),
        )
        example_views = ExampleViews(repository, registry, examples)
        lifecycle = Lifecycle(repository.root, SigningFiles(), most=3)
        models = ModelServicer(
            repository, registry, views, example_views, intake, lifecycle, Statistics(), LIMITS
        )
        classifier = ClassifierServicer(
            cast("Classifier", _Classifier()), cast("Explainer", None), most_seconds=60.0
        )
        running = OperationsServicer(views)
        self.methods = (
            _Method("Classify", classify_pb.ClassifyRequest, classifier.Classify),
            _Method(
                "StreamClassify",
                classify_pb.StreamClassifyRequest,
                classifier.StreamClassify,
                streams=True,
            ),
            _Method("ListModels", model_pb.ListModelsRequest, models.ListModels),
            _Method("GetModel", model_pb.GetModelRequest, models.GetModel),
            _Method("ListRevisions", model_pb.ListRevisionsRequest, models.ListRevisions),
            _Method("GetReport", revision_pb.GetReportRequest, models.GetReport),
            _Method("AddClass", change_pb.AddClassRequest, models.AddClass, streams=True),
            _Method("AddExamples", change_pb.AddExamplesRequest, models.AddExamples, streams=True),
            _Method("AddClasses", change_pb.AddClassesRequest, models.AddClasses, streams=True),
            _Method("RemoveClass", change_pb.RemoveClassRequest, models.RemoveClass),
            _Method("RenameClass", change_pb.RenameClassRequest, models.RenameClass),
            _Method("Retrain", change_pb.RetrainRequest, models.Retrain),
            _Method("ListExamples", example_pb.ListExamplesRequest, models.ListExamples),
            _Method("GetExample", example_pb.GetExampleRequest, models.GetExample),
            _Method("RemoveExamples", change_pb.RemoveExamplesRequest, models.RemoveExamples),
            _Method("MoveExamples", change_pb.MoveExamplesRequest, models.MoveExamples),
            _Method("Rollback", model_pb.RollbackRequest, models.Rollback),
            _Method("PinRevision", model_pb.PinRevisionRequest, models.PinRevision),
            _Method("CreateModel", lifecycle_pb.CreateModelRequest, models.CreateModel),
            _Method("CopyModel", lifecycle_pb.CopyModelRequest, models.CopyModel),
            _Method("UndeleteModel", lifecycle_pb.UndeleteModelRequest, models.UndeleteModel),
            _Method("ListBackbones", lifecycle_pb.ListBackbonesRequest, models.ListBackbones),
            _Method("ListOperations", operations_pb2.ListOperationsRequest, running.ListOperations),
            _Method("GetOperation", operations_pb2.GetOperationRequest, running.GetOperation),
            _Method("WaitOperation", operations_pb2.WaitOperationRequest, running.WaitOperation),
            _Method("Evaluate", evaluation_pb.EvaluateRequest, models.Evaluate, streams=True),
            _Method(
                "ListEvaluationSets",
                evaluation_pb.ListEvaluationSetsRequest,
                models.ListEvaluationSets,
            ),
            _Method(
                "GetEvaluationSet", evaluation_pb.GetEvaluationSetRequest, models.GetEvaluationSet
            ),
            _Method(
                "ListEvaluations", evaluation_pb.ListEvaluationsRequest, models.ListEvaluations
            ),
            _Method("GetEvaluation", evaluation_pb.GetEvaluationRequest, models.GetEvaluation),
        )
        self._runner = asyncio.Runner()

    def run(self, method: _Method, request: Message) -> Message:
        """Return a method's response to one message."""
        return self._runner.run(_answer(method, request))


async def _answer(method: _Method, request: Message) -> Message:
    context = cast("Context", _Context())
    set_caller(ANYBODY)
    if not method.streams:
        return cast("Message", await method.call(request, context))

    async def requests() -> AsyncIterator[Message]:
        yield request

    answer = method.call(requests(), context)
    if isinstance(answer, AsyncIterator):
        (only,) = [message async for message in answer]
        return cast("Message", only)
    return cast("Message", await answer)


class _Registry:
    """Registry with the model of the sandbox."""

    def models(self) -> list[str]:
        return [sandbox.MODEL]

    def serving(self, model: str) -> Manifest:
        if model != sandbox.MODEL:
            raise NotFound(f"there is no model {model!r}", kind="model", resource=model)
        return sandbox.repository().manifest(model, 1)

    def drafts(self) -> list[str]:
        return []

    def current(self, model: str) -> Manifest:
        return self.serving(model)

    def backbone(self, model: str) -> LoadedBackbone:
        return LoadedBackbone(sandbox.repository().backbone(self.serving(model)), None)

    def knows(self, model: str, revision: int) -> bool:
        return True

    async def refresh(self, model: str) -> None:
        pass


class _Operations:
    """Operations without a database: accepts every job and stores only the last."""

    def __init__(self) -> None:
        self._last: OperationState | None = None

    async def submit(
        self, job: Job, request_id: str, *, size: int = 0, admit: Admit | None = None
    ) -> OperationState:
        if admit is not None:
            await admit(0)
        assert from_data(json.loads(json.dumps(to_data(job), allow_nan=False)), Job) == job
        assert size >= 0
        self._last = queued(request_id, subject_of(job), job.accepted)
        return self._last

    async def find(self, identifier: str) -> OperationState | None:
        return self._last if identifier != sandbox.MODEL else None

    async def get(self, identifier: str) -> OperationState:
        state = await self.find(identifier)
        if state is None:
            raise no_operation(identifier)
        return state

    async def wait(
        self, identifier: str, seconds: float, check: Callable[[OperationState], None]
    ) -> OperationState:
        assert 0 <= seconds <= 3600
        operation = await self.get(identifier)
        check(operation)
        return operation

    async def list(
        self, wanted: OperationFilter, *, offset: int, limit: int, visible: object = None
    ) -> list[OperationState]:
        assert visible is None
        json.dumps(wanted.attributes)
        assert 0 <= offset < 10**9
        assert 1 <= limit <= 1001
        return [self._last] if self._last is not None else []

    async def pending_bytes(self, model: str) -> int:
        assert model == sandbox.MODEL
        return 0


class _Classifier:
    """Classifier that checks a request and returns no results."""

    async def classify(
        self, model: str, images: Any, *, revision: int, top_k: int, budget: float, **_: Any
    ) -> Classified:
        assert 0 <= budget <= 60
        classifying.check_count(len(images), LIMITS)
        for image in images:
            with contextlib.suppress(ImageError):
                assert isinstance(image, bytes | SentContent) or checked(image, SPACE).shape == (3,)
        classifying.check_not_negative(revision, "revision")
        classifying.check_not_negative(top_k, "top_k")
        nothing = Timings(decode=0, queue=0, backbone=0, head=0, total=0)
        return Classified(revision=revision, results=(), timings=nothing)
