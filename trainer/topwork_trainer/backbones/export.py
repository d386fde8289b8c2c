"""Export of a torch backbone to an ONNX graph, with a parity check. Imports torch."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from topwork_trainer.backbones import TorchBackbone
from topwork_trainer.backbones.parity import (
    Embed,
    ExportError,
    Parity,
    check_parity,
    structured_images,
)
from topwork_trainer.backbones.stamp import stamped

OPSET = 18
"""Raising it needs newer runtimes; 18 is torch's native opset and runs on ONNX Runtime 1.14."""
IR_VERSION = 8
"""Raising it only excludes older runtimes (onnxruntime #20559); 8 belongs to opset 18."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedBackbone:
    """ONNX graph of a backbone, and the result of its parity check with torch."""

    onnx: bytes
    """Input ``image`` uint8 (N, crop, crop, 3), RGB; output ``embedding`` float32 (N, D)."""
    parity: Parity


class EmbeddingModel(nn.Module):
    """Maps images uint8 (N, crop, crop, 3), RGB, to embeddings float32 (N, D)."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: TorchBackbone) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.views = backbone.views
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Mirror and transpose the bytes, which is cheaper before normalisation, then embed.

        Both views are one batch of 2 N. Two branches took up to 7 % longer in ONNX Runtime, and the
        exporter did not fold their batch norms into the convolutions.
        """
        if self.views == 2:
            image = torch.cat([image, image.flip(2)])
        pixels = image.permute(0, 3, 1, 2).float()
        embedding: Tensor = self.backbone((pixels - self.mean) / self.std)
        if self.views == 2:
            embedding = embedding.view(2, -1, embedding.shape[1]).mean(0)
        return embedding


def export(backbone: TorchBackbone, *, open_session: Callable[[bytes], Embed]) -> ExportedBackbone:
    """Return the ONNX graph of ``backbone``, compared with torch in ``open_session(graph)``.

    Puts the module into eval mode. Raises ExportError if torch cannot export it for any number of
    images, or if the check fails.
    """
    model = EmbeddingModel(backbone).eval()
    onnx = to_onnx(model, backbone, output="embedding")
    images = structured_images(backbone.spec.crop)
    # Batches of 1, 3 and 8: a graph with a fixed batch size fails here.
    batches = (images[:1], images[1:4], images)
    with torch.inference_mode():
        expected = np.concatenate([model(torch.from_numpy(batch)).numpy() for batch in batches])
    embed = open_session(onnx)
    actual = np.concatenate([embed(batch) for batch in batches])
    return ExportedBackbone(onnx=onnx, parity=check_parity(expected, actual))


def to_onnx(model: nn.Module, backbone: TorchBackbone, *, output: str) -> bytes:
    """Return the ONNX graph of a model of ``backbone``'s images, uint8 (N, crop, crop, 3), RGB.

    Raises ExportError if torch cannot export it for any number of images.
    """
    if sum(weight.nbytes for weight in model.state_dict().values()) >= 2**31:
        raise ExportError(f"{backbone.name} is larger than the 2 GiB that one ONNX file can hold")
    example = torch.zeros(2, backbone.spec.crop, backbone.spec.crop, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the use of its own internals
            # In two steps, because torch.onnx.export hides the reason of a failed trace.
            dynamic = ({0: torch.export.Dim("batch")},)
            traced = torch.export.export(model, (example,), dynamic_shapes=dynamic, strict=False)
            program = torch.onnx.export(
                traced,
                input_names=["image"],
                output_names=[output],
                dynamic_shapes=({0: "batch"},),  # only names it
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch's exporters raise errors of many types
        reason = textwrap.shorten(str(error), 500, placeholder=" ...")
        raise ExportError(f"torch cannot export {backbone.name}: {reason}") from error
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    _free_name(program.model.graph, output)
    # Stack traces and local file names would give the same backbone another digest.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.ir_version = IR_VERSION
    return stamped(program.model_proto.SerializeToString(), backbone.spec)


def _free_name(graph: ir.Graph, output: str) -> None:
    """Rename other values that are called like the output, as a layer ``Embedding`` calls its."""
    inner = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in inner:
        if value.name == output and value is not graph.outputs[0]:
            value.name = f"{output}_inner"
