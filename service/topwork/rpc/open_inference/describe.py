"""Metadata, configuration and statistics of models in the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass

from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.inference import inference_service_pb2 as pb
from topwork.inference import model_config_pb2 as config_pb
from topwork.inputs.audio import AudioSpec
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.inputs.text import TextSpec
from topwork.limits import ServerLimits
from topwork.rpc.open_inference.tensors import OUTPUTS
from topwork.serving.statistics import RevisionStatistics

NAME = "topwork"
"""Name of the server, its platform and its backend."""

_TYPES = {
    "BYTES": config_pb.TYPE_STRING,
    "UINT8": config_pb.TYPE_UINT8,
    "FP32": config_pb.TYPE_FP32,
}
_Tensor = pb.ModelMetadataResponse.TensorMetadata


@dataclass(frozen=True, slots=True)
class _Input:
    """An input tensor, without the batch dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]


def _inputs(info: BackboneInfo) -> tuple[_Input, ...]:
    """Return the inputs that a request may have; it has one of them."""
    match info.preprocess:
        case EmbeddingSpec():
            return (_Input("embeddings", "FP32", (info.width,)),)
        case TextSpec():
            return (_Input("texts", "BYTES", (1,)),)
        case AudioSpec():
            return (_Input("audio", "BYTES", (1,)),)
        case _:
            crop = info.image_spec.crop
            return (_Input("images", "BYTES", (1,)), _Input("pixels", "UINT8", (crop, crop, 3)))


def _parameters(info: BackboneInfo) -> dict[str, object]:
    match info.preprocess:
        case EmbeddingSpec() as spec:
            return {"space": spec.space}
        case TextSpec() as spec:
            return {"max_tokens": spec.max_tokens}
        case AudioSpec() as spec:
            return {"rate": spec.rate, "max_seconds": spec.max_seconds}
        case _:
            image = info.image_spec
            return {
                "resize": image.resize,
                "crop": image.crop,
                "interpolation": image.interpolation,
            }


def to_metadata(manifest: Manifest, info: BackboneInfo) -> pb.ModelMetadataResponse:
    """Return the tensors of a revision; -1 stands for the number of inputs."""
    return pb.ModelMetadataResponse(
        name=manifest.model,
        versions=[str(manifest.revision)],
        platform=NAME,
        inputs=[
            _Tensor(name=found.name, datatype=found.datatype, shape=[-1, *found.dims])
            for found in _inputs(info)
        ],
        outputs=[
            _Tensor(name=name, datatype="FP32", shape=[-1, width])
            for name, width in _widths(manifest, info).items()
        ],
    )


def to_config(
    manifest: Manifest, info: BackboneInfo, limits: ServerLimits
) -> config_pb.ModelConfig:
    """Return the tensors of a revision, without the batch dimension, and its spec."""
    inputs = _inputs(info)
    return config_pb.ModelConfig(
        name=manifest.model,
        platform=NAME,
        backend=NAME,
        max_batch_size=limits.max_images_per_request,
        input=[
            config_pb.ModelInput(
                name=found.name,
                data_type=_TYPES[found.datatype],
                format=config_pb.ModelInput.FORMAT_NHWC
                if len(found.dims) == 3
                else config_pb.ModelInput.FORMAT_NONE,
                dims=found.dims,
                optional=len(inputs) > 1,
            )
            for found in inputs
        ],
        output=[
            config_pb.ModelOutput(name=name, data_type=config_pb.TYPE_FP32, dims=[width])
            for name, width in _widths(manifest, info).items()
        ],
        parameters={
            name: config_pb.ModelParameter(string_value=str(value))
            for name, value in _parameters(info).items()
        },
    )


def to_statistics(model: str, revision: int, statistics: RevisionStatistics) -> pb.ModelStatistics:
    """Return the statistics of a revision."""

    def duration(seconds: float, count: int = statistics.answered) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))

    return pb.ModelStatistics(
        name=model,
        version=str(revision),
        last_inference=round(statistics.last * 1e3),
        inference_count=statistics.images,
        execution_count=round(statistics.runs),
        inference_stats=pb.InferStatistics(
            success=duration(statistics.total),
            fail=duration(statistics.failed_total, statistics.failed),
            queue=duration(statistics.queue),
            compute_input=duration(statistics.decode),
            compute_infer=duration(statistics.backbone + statistics.head),
            compute_output=duration(0),
        ),
    )


def _widths(manifest: Manifest, info: BackboneInfo) -> dict[str, int]:
    labels = len(manifest.labels)
    return dict(zip(OUTPUTS, (labels, labels, info.width), strict=True))
