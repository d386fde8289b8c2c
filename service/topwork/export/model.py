"""Portable model: backbone and head of a revision joined into one ONNX graph with metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

import topwork
from topwork.bundle.manifest import BackboneInfo, Manifest, check_may_serve
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotReady
from topwork.inputs.kinds import kind_of
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.probe_images import LATEST, probe_images
from topwork.runtime.backend import Session, open_session
from topwork.serving.head import HeadLoader, LoadedHead

FORMAT = "topwork/1"
"""Version of the inputs, outputs and metadata, in the metadata."""

TOLERANCE = 1e-4
"""Raising it accepts exports whose probabilities differ more from those of the two graphs."""

Precision = Literal["stored", "fp32"]

_PREFIX = "topwork_head/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """A revision as one ONNX file."""

    model: bytes
    """Input ``image`` uint8 (N, crop, crop, 3), RGB; outputs ``probabilities`` float32 (N, C) and,
    if the head detects unknowns, ``unknown`` float32 (N,)."""
    facts: Mapping[str, Any]
    """Metadata of the file; there, all values but strings are JSON."""


def export(
    repository: Repository, model: str, *, revision: int = 0, precision: Precision = "stored"
) -> Portable:
    """Return a revision as one ONNX file; equal revisions give equal bytes.

    ``revision`` 0 is the serving one. ``precision`` fp32 takes the fp32 twin of an int8 backbone.
    The file is compared with the two graphs first. Raises NotFound; NotReady if the revision was
    rejected or cannot be one such graph; Corrupt if it is damaged.
    """
    manifest = repository.manifest(model, revision or repository.serving(model))
    check_may_serve(manifest)
    info = repository.backbone(manifest)
    _check_kind(model, info)
    info = _in_precision(info, precision)
    backbone, head = repository.backbone_model(info.digest), repository.head(manifest)
    facts, detects = _facts(manifest, info), manifest.chosen.unknown_threshold is not None
    session = open_session(backbone, output="embedding")
    loaded = HeadLoader().load(head, width=info.width, labels=len(manifest.labels), unknown=detects)
    joined = _join(backbone, head, info, facts)
    _check(joined, session, loaded, info)
    return Portable(model=joined, facts=facts)


def _check_kind(model: str, info: BackboneInfo) -> None:
    """Raise NotReady unless a revision with this backbone can be one file."""
    if not info.has_graph:
        why = "embeddings, which its clients compute: it has no backbone that could be exported"
    elif not isinstance(info.preprocess, PreprocessSpec):
        kind = kind_of(info.preprocess).name
        why = f"inputs of the kind {kind!r}, which no graph can prepare: only images are exported"
    else:
        return
    raise NotReady(f"model {model!r} takes {why}", reason="INPUT_KIND")


def _in_precision(info: BackboneInfo, precision: Precision) -> BackboneInfo:
    if precision == "stored" or info.precision == "fp32":
        return info
    if (twin := info.as_twin()) is None:
        raise NotReady(f"backbone {info.name} is {info.precision} and has no fp32 twin")
    return twin


def _facts(manifest: Manifest, info: BackboneInfo) -> dict[str, Any]:
    threshold = manifest.chosen.unknown_threshold
    return {
        "format": FORMAT,
        "model": manifest.model,
        "revision": manifest.revision,
        "labels": list(manifest.labels),
        **({} if threshold is None else {"unknown_threshold": threshold}),
        "preprocess": asdict(info.image_spec),
        "backbone": info.name,
        "precision": info.precision,
        "backbone_sha256": info.digest,
        "head_sha256": manifest.head,
        "data_digest": manifest.data_digest,
        "weights_licence": info.licence,
        "weights_source": info.source,
    }


def _join(backbone: bytes, head: bytes, info: BackboneInfo, facts: Mapping[str, Any]) -> bytes:
    first = onnx.load_model_from_string(backbone)
    _check_input(first, info)
    second = _for_any_batch(onnx.load_model_from_string(head), info.width)
    opset = max(_opset(first), _opset(second))
    first, second = _with_opset(first, opset), _with_opset(second, opset)
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    joined = compose.merge_models(
        first,
        second,
        io_map=[("embedding", "embedding")],
        outputs=[value.name for value in second.graph.output],
        name=str(facts["model"]),
        producer_name="topwork",
        producer_version=topwork.__version__,
        model_version=int(facts["revision"]),
    )
    versions = {entry.domain: entry.version for entry in joined.opset_import}  # some occur twice
    del joined.opset_import[:], joined.metadata_props[:]
    joined.opset_import.extend(helper.make_opsetid(*each) for each in sorted(versions.items()))
    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()
    }
    helper.set_model_props(joined, texts)
    onnx.checker.check_model(joined, full_check=True)
    return joined.SerializeToString(deterministic=True)


def _check_input(backbone: onnx.ModelProto, info: BackboneInfo) -> None:
    """Raise NotReady unless the graph's only input is a batch of images."""
    weights = {tensor.name for tensor in backbone.graph.initializer}
    inputs = [value for value in backbone.graph.input if value.name not in weights]
    crop = info.image_spec.crop
    for value in inputs[:1]:
        kind = value.type.tensor_type
        shape = [size.dim_value for size in kind.shape.dim]
        if kind.elem_type == TensorProto.UINT8 and shape[1:] == [crop, crop, 3] and not inputs[1:]:
            return
    raise NotReady(
        f"backbone {info.name} cannot be exported: its inputs are "
        f"{', '.join(value.name for value in inputs)}, not one batch of uint8 ({crop}, {crop}, 3)"
    )


def _for_any_batch(head: onnx.ModelProto, width: int) -> onnx.ModelProto:
    """Return the head with a row of zeros added in the graph, and without the output ``logits``.

    ONNX Runtime rounds the products of a lone row differently. The server never computes a lone row
    (see ``topwork.serving.head``), so the exported graph does not either.
    """
    graph = compose.add_prefix(head, _PREFIX, inplace=True).graph
    constants = {
        f"{_PREFIX}zeros": np.zeros((1, width), np.float32),
        f"{_PREFIX}first": np.array([0]),
        f"{_PREFIX}last": np.array([-1]),
    }
    graph.initializer.extend(
        numpy_helper.from_array(each, name) for name, each in constants.items()
    )
    zeros, first, last = constants
    rows = graph.input[0].name
    graph.input[0].name = "embedding"
    graph.node.insert(0, helper.make_node("Concat", ["embedding", zeros], [rows], axis=0))
    outputs = [each for each in graph.output if each.name != f"{_PREFIX}logits"]
    del graph.output[:]
    for output in outputs:
        inside, output.name = output.name, output.name.removeprefix(_PREFIX)
        axis = first  # rows
        graph.node.append(helper.make_node("Slice", [inside, first, last, axis], [output.name]))
        graph.output.append(output)
    return head


def _opset(model: onnx.ModelProto) -> int:
    return next(
        int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}
    )


def _with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the graph converted to an opset. Raises NotReady."""
    if _opset(model) == opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # the converter's errors have no common base class
        raise NotReady(
            f"the graph has opset {_opset(model)} and cannot be converted to {opset}: {error}"
        ) from error


def _check(joined: bytes, backbone: Session, head: LoadedHead, info: BackboneInfo) -> None:
    """Raise Corrupt if the joined graph answers differently from backbone and head."""
    session = open_session(joined, output="probabilities")
    for image in probe_images(LATEST, info.image_spec.crop):
        expected = [each for each in head.run(backbone.run(image[None])) if each is not None]
        found = session.run_outputs(image[None], ["probabilities", "unknown"][: len(expected)])
        off = max(
            float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True)
        )
        if not off <= TOLERANCE:  # also true for NaN
            raise Corrupt(f"the exported graph is wrong: its probabilities differ by {off:.2g}")
