"""Import of encoders as backbones: checks of their embeddings, and the description."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from topwork.bundle.manifest import BackboneInfo
from topwork.errors import Corrupt
from topwork.inputs.spec import InputSpec
from topwork.runtime.agreement import expect
from topwork.runtime.backend import Session, software_versions
from topwork.storage.files import sha256
from topwork_trainer.backbones import onnx_file
from topwork_trainer.backbones.parity import ExportError, check_parity
from topwork_trainer.backbones.timing import embedding_milliseconds

IDENTITY = "onnx:"
"""Beginning of the identity of imported backbones."""

_QUANTISED = {
    *("QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"),
    *("DynamicQuantizeLinear", "DynamicQuantizeMatMul"),
}


class Source(Protocol):
    """A file to import, and its licence."""

    @property
    def file(self) -> Path:
        """File of the graph or the weights."""

    @property
    def licence(self) -> str:
        """Such as ``Apache-2.0``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedBackbone:
    """A backbone made of an ONNX file."""

    onnx: bytes
    """Input ``image`` uint8 (N, crop, crop, 3), RGB, ``tokens`` int64 (N, T), or ``windows``
    float32 (N, W, L); output ``embedding`` float32 (N, D)."""
    info: BackboneInfo
    notes: tuple[str, ...]
    """What was found in the graph or assumed, a sentence each."""
    milliseconds: float
    """Time to embed an image, a text of 64 tokens, or a window, on one core of this machine."""


@contextlib.contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Raise InvalidInput, which names ``file``, for the errors of a graph that cannot be used."""
    try:
        yield
    except (ValueError, Corrupt, ExportError) as error:
        raise onnx_file.unusable(file, error) from error
    except (IndexError, KeyError, TypeError) as error:  # such as a node without inputs
        raise onnx_file.unusable(file, "its graph is malformed") from error


def check_embeddings(embeddings: NDArray[np.float32], tensor: str, inputs: str) -> None:
    """Raise ValueError if embeddings (N, D) of an output cannot tell ``inputs`` apart."""
    if not np.isfinite(embeddings).all():
        raise ValueError("its embeddings have values that are not finite")
    if (embeddings == embeddings[0]).all():
        raise ValueError(f"its output {tensor!r} is the same for all {inputs}")


def imported(
    name: str,
    source: Source,
    *,
    original: onnx.ModelProto,
    graph: bytes,
    session: Session,
    spec: InputSpec,
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    notes: tuple[str, ...],
) -> ImportedBackbone:
    """Return the backbone ``name``: a completed ``graph``, which ``session`` runs.

    Its embeddings ``actual`` (N, D) are compared with the ones of the original, ``expected``.
    Raises ExportError if they differ.
    """
    parity = check_parity(expected, actual, reference="the original graph")
    quantised = any(node.op_type in _QUANTISED for node in onnx_file.nodes_of(original.graph))
    info = BackboneInfo(
        name=name,
        identity=f"{IDENTITY}{name}:{sha256(graph)}",
        digest=sha256(graph),
        preprocess=spec,
        width=expected.shape[1],
        precision="int8" if quantised else "fp32",
        licence=source.licence,
        source=source.file.name,
        weights_digest=onnx_file.digest(source.file),
        parity_error=parity.max_abs_difference,
        versions=software_versions(),
        expected=expect(session.run, spec),
    )
    return ImportedBackbone(
        onnx=graph, info=info, notes=notes, milliseconds=embedding_milliseconds(session, spec)
    )
