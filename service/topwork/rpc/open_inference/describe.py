"""Metadata, configuration and statistics of models in the Open Inference Protocol."""

from __future__ import annotations

from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.inference import inference_service_pb2 as pb
from topwork.inference import model_config_pb2 as config_pb
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.limits import ServerLimits
from topwork.rpc.open_inference.tensors import OUTPUTS
from topwork.serving.statistics import RevisionStatistics

NAME = "topwork"
"""Name of the server, its platform and its backend."""

_Tensor = pb.ModelMetadataResponse.TensorMetadata


def to_metadata(manifest: Manifest, info: BackboneInfo) -> pb.ModelMetadataResponse:
    """Return the tensors of a revision; -1 stands for the number of images."""
    return pb.ModelMetadataResponse(
        name=manifest.model,
        versions=[str(manifest.revision)],
        platform=NAME,
        inputs=[
            _Tensor(name="images", datatype="BYTES", shape=[-1, 1]),
            _Tensor(name="pixels", datatype="UINT8", shape=[-1, *_pixel_shape(info)]),
        ]
        if info.has_graph
        else [_Tensor(name="embeddings", datatype="FP32", shape=[-1, info.width])],
        outputs=[
            _Tensor(name=name, datatype="FP32", shape=[-1, width])
            for name, width in _widths(manifest, info).items()
        ],
    )


def to_config(
    manifest: Manifest, info: BackboneInfo, limits: ServerLimits
) -> config_pb.ModelConfig:
    """Return the tensors of a revision, without the batch dimension, and its preprocess spec."""
    spec = info.preprocess
    return config_pb.ModelConfig(
        name=manifest.model,
        platform=NAME,
        backend=NAME,
        max_batch_size=limits.max_images_per_request,
        input=[
            config_pb.ModelInput(
                name="images", data_type=config_pb.TYPE_STRING, dims=[1], optional=True
            ),
            config_pb.ModelInput(
                name="pixels",
                data_type=config_pb.TYPE_UINT8,
                format=config_pb.ModelInput.FORMAT_NHWC,
                dims=_pixel_shape(info),
                optional=True,
            ),
        ]
        if info.has_graph
        else [
            config_pb.ModelInput(
                name="embeddings", data_type=config_pb.TYPE_FP32, dims=[info.width]
            )
        ],
        output=[
            config_pb.ModelOutput(name=name, data_type=config_pb.TYPE_FP32, dims=[width])
            for name, width in _widths(manifest, info).items()
        ],
        parameters={
            name: config_pb.ModelParameter(string_value=str(value))
            for name, value in (
                (("space", spec.space),)
                if isinstance(spec, EmbeddingSpec)
                else (
                    ("resize", info.image_spec.resize),
                    ("crop", info.image_spec.crop),
                    ("interpolation", info.image_spec.interpolation),
                )
            )
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


def _pixel_shape(info: BackboneInfo) -> list[int]:
    return [info.image_spec.crop, info.image_spec.crop, 3]


def _widths(manifest: Manifest, info: BackboneInfo) -> dict[str, int]:
    labels = len(manifest.labels)
    return dict(zip(OUTPUTS, (labels, labels, info.width), strict=True))
