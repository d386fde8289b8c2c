"""ONNX graph of a text encoder in Hugging Face's format. Imports torch and transformers."""

from __future__ import annotations

import inspect
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from topwork.errors import InvalidInput
from topwork.runtime.backend import open_session
from topwork_trainer.backbones import towers
from topwork_trainer.backbones.export import IR_VERSION, OPSET
from topwork_trainer.backbones.parity import ExportError, check_parity

ARCHITECTURES = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Types of networks, by the name in config.json, that are known to export."""

_CHECKED_LENGTHS = (1, 3, 40)

OUTPUT = "last_hidden_state"


class TokenEncoder(nn.Module):
    """Maps tokens int64 (N, T) to rows float32 (N, T, D), without a mask: no text is padded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return a row per token."""
        rows: Tensor = self.model(input_ids=tokens)[0]
        return rows


def to_onnx(folder: Path) -> onnx.ModelProto:
    """Return the graph of a folder, from ``input_ids`` int64 (N, T) to OUTPUT (N, T, D).

    Never runs code of the folder, and reads weights from safetensors only. It is compared with
    torch. Raises InvalidInput if it cannot be used.
    """
    encoder = TokenEncoder(_load(folder)).eval()
    if sum(weight.nbytes for weight in encoder.state_dict().values()) >= 2**31:
        raise _unusable(folder, "it is larger than the 2 GiB that one ONNX file can hold")
    example = torch.ones((2, 8), dtype=torch.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about the use of its own internals
            dims = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
            traced = torch.export.export(encoder, (example,), dynamic_shapes=dims, strict=False)
            program = torch.onnx.export(
                traced,
                input_names=["input_ids"],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch", 1: "length"},),  # only names them
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch's exporters raise errors of many types
        raise _unusable(folder, f"torch cannot export it: {_brief(error)}") from error
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    ClearMetadataAndDocStringPass()(program.model)
    program.model.ir_version = IR_VERSION
    graph = program.model_proto.SerializeToString()
    try:
        _check(encoder, graph)
    except ExportError as error:
        raise _unusable(folder, str(error)) from error
    return onnx.load_from_string(graph)


def _check(encoder: TokenEncoder, graph: bytes) -> None:
    """Compare a graph with torch on texts of several lengths. Raises ExportError."""
    session = open_session(graph, output=OUTPUT, quiet=True)
    generator = np.random.default_rng(0)
    size = encoder.model.get_input_embeddings().num_embeddings
    texts = [generator.integers(0, size, (1, length)) for length in _CHECKED_LENGTHS]
    with torch.inference_mode():
        expected = [encoder(torch.from_numpy(text)).numpy()[0] for text in texts]
    actual = [session.run(text)[0] for text in texts]
    check_parity(np.concatenate(expected), np.concatenate(actual))


def _load(folder: Path) -> nn.Module:
    """Return the network of a folder, with its weights. Raises InvalidInput."""
    transformers: Any = towers.package()
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
    except Exception as error:  # of many types; also a folder whose model is code of its own
        raise _unusable(
            folder, f"transformers cannot read its config.json: {_brief(error)}"
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise _unusable(
            folder,
            f"its architecture {config.model_type!r} is none of {', '.join(ARCHITECTURES)}: export "
            "it to ONNX with Optimum (optimum-cli export onnx --task feature-extraction)",
        )
    network = transformers.MODEL_MAPPING[type(config)]
    if "add_pooling_layer" in inspect.signature(network.__init__).parameters:
        options["add_pooling_layer"] = False  # its output is not used
    try:
        model, loaded = network.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # models raise errors of many types
        raise _unusable(folder, f"transformers cannot load it: {_brief(error)}") from error
    if missing := sorted(map(str, loaded["missing_keys"])):
        raise _unusable(folder, f"{len(missing)} weights are missing, the first is {missing[0]!r}")
    assert isinstance(model, nn.Module)
    return model


def _unusable(folder: Path, why: str) -> InvalidInput:
    return InvalidInput(f"text encoder {folder} cannot be used: {why}", field="encoder")


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
