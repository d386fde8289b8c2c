"""Repositories with a tiny backbone, which averages 4 x 4 patches of a 16 x 16 image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Concatenate, ParamSpec

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.pictures import pictures
from topwork.bundle.exemplars import Exemplars, split
from topwork.bundle.features import make
from topwork.bundle.head import Head, Scorer
from topwork.bundle.head_graph import to_onnx
from topwork.bundle.manifest import BackboneInfo, Manifest
from topwork.bundle.recipe import Recipe
from topwork.bundle.shards import to_bytes
from topwork.bundle.store import Repository
from topwork.inputs.image_source import ImageSource
from topwork.inputs.preprocess import PreprocessSpec
from topwork.learning.learn import learn
from topwork.report.content import Making
from topwork.runtime.agreement import expect
from topwork.runtime.backend import open_session
from topwork.storage.files import sha256
from topwork.training.embed import embed
from topwork.training.publish import publish as publish_learned

P = ParamSpec("P")

SPEC = PreprocessSpec(resize=16, crop=16)
WIDTH = 48
LOGISTIC = Recipe(head="logistic", normalisation="sqrt_l2")
"""A fixed recipe: quick, with nothing to choose."""


def backbone_model() -> bytes:
    """Return the tiny backbone: uint8 (N, 16, 16, 3) -> float32 (N, 48)."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["means", "shape"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(np.array([-1, WIDTH], dtype=np.int64), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def busy_backbone_model() -> bytes:
    """Return the tiny backbone with a needless matrix product: a tenth of a second in native code.

    The product depends on the input, so that constant folding cannot remove it.
    """
    model = onnx.load_from_string(backbone_model())
    graph = model.graph
    graph.node[-1].output[0] = "plain"
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["plain"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["zeros", "mean"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "zeros"], ["product"]),
            helper.make_node("ReduceMean", ["product"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["plain", "nothing"], ["embedding"]),
        ]
    )
    graph.initializer.append(
        numpy_helper.from_array(np.zeros((1600, 1600), dtype=np.float32), "zeros")
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def saturating_backbone_model() -> bytes:
    """Return the tiny backbone with sums that end at 32, like int8 products without VNNI."""
    model = onnx.load_from_string(backbone_model())
    graph = model.graph
    graph.node[-1].output[0] = "plain"
    graph.node.append(helper.make_node("Min", ["plain", "most"], ["embedding"]))
    graph.initializer.append(numpy_helper.from_array(np.array(32, dtype=np.float32), "most"))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def quantised_info(model: bytes) -> BackboneInfo:
    """Return the description of a backbone that was quantised from the tiny one, its twin.

    It gave the embeddings of the twin where it was stored.
    """
    twin = backbone_model()
    return replace(
        backbone_info(model),
        precision="int8",
        twin=sha256(twin),
        expected=expect(open_session(twin, output="embedding").run, SPEC),
    )


def backbone_info(model: bytes) -> BackboneInfo:
    """Return the description of the tiny backbone."""
    return BackboneInfo(
        name="tiny",
        identity="tiny:1",
        digest=sha256(model),
        preprocess=SPEC,
        width=WIDTH,
        precision="fp32",
        licence="Apache-2.0",
        source="tests",
        weights_digest=sha256(b""),
        parity_error=0.0,
        versions={},
    )


def embed_pictures(images: Mapping[str, Sequence[bytes]]) -> Exemplars:
    """Return the exemplars of encoded images by label."""
    sources = [
        ImageSource(name=f"{label}-{index}", label=label, read=lambda content=content: content)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        for label, contents in images.items()
        for index, content in enumerate(contents)
    ]
    session = open_session(backbone_model(), output="embedding")
    exemplars, skipped = embed(sources, session, SPEC, cores=2)
    assert exemplars is not None
    assert not skipped
    return exemplars


def shard_files(exemplars: Exemplars) -> dict[str, bytes]:
    """Return the shard files of exemplars, by label."""
    return {label: to_bytes(shard) for label, shard in split(exemplars)}


def publish(
    repository: Repository,
    model: str,
    exemplars: Exemplars,
    *,
    seed: int = 0,
    recipe: Recipe = LOGISTIC,
    backbone: bytes | None = None,
    info: BackboneInfo | None = None,
) -> Manifest:
    """Publish a revision fitted on ``exemplars``, and let it serve.

    ``backbone`` is a graph to use instead of the tiny one, with the description ``info``.
    """
    backbone = backbone or backbone_model()
    info = info or backbone_info(backbone)
    repository.put_backbone(backbone, info)
    manifest = publish_learned(
        repository,
        exemplars,
        learn(exemplars, seed=seed, recipe=recipe),
        model=model,
        backbone=info.digest,
        shards=repository.put_exemplars(exemplars),
        seed=seed,
        recipe=recipe,
        making=Making(command="tests"),
    )
    repository.set_serving(model, manifest.revision, why="fit")
    return manifest


def linear_head(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
    """Return the graph of a head with weights (C, D) and bias (C,) on embeddings of length 1."""
    normaliser = make("l2", np.zeros((1, weights.shape[1]), dtype=np.float32))
    scorer = Scorer(weights=weights, bias=bias)
    return to_onnx(Head(normaliser=normaliser, scorer=scorer, temperature=1.0))


def publish_copy(
    repository: Repository,
    manifest: Manifest,
    *,
    head: bytes | None = None,
    model: str | None = None,
) -> Manifest:
    """Publish ``manifest`` again, optionally with another head or for another model.

    The copy does not serve yet.
    """
    return repository.publish(
        replace(manifest, model=model or manifest.model),
        head=head or repository.head(manifest),
        metrics=repository.metrics(manifest),
        report=lambda copy: f"revision {copy.revision}".encode(),
    )


def copied(
    make: Callable[Concatenate[Path, P], Repository],
) -> Callable[Concatenate[Path, P], Repository]:
    """Call ``make`` once per process and arguments; each repository is a copy of its files."""

    @functools.cache
    def files(*args: P.args, **kwargs: P.kwargs) -> dict[Path, bytes]:
        with TemporaryDirectory() as directory:
            made = make(Path(directory), *args, **kwargs).root
            paths = [path for path in made.rglob("*") if path.is_file()]
            return {path.relative_to(made): path.read_bytes() for path in paths}

    @functools.wraps(make)
    def copy(root: Path, /, *args: P.args, **kwargs: P.kwargs) -> Repository:
        for path, content in files(*args, **kwargs).items():  # type: ignore[arg-type]  # all are hashable
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        return Repository(root)

    return copy


@copied
def saturating_repository(root: Path) -> Repository:
    """Return a repository whose model ``colours`` has a backbone that is off; its twin is right."""
    made = Repository(root)
    twin = backbone_model()
    made.put_backbone(twin, backbone_info(twin))
    exemplars = embed_pictures({label: pictures(label, 20) for label in ("amber", "blue", "green")})
    model = saturating_backbone_model()
    publish(made, "colours", exemplars, backbone=model, info=quantised_info(model))
    return made


@copied
def repository(
    root: Path, *, labels: Sequence[str] = ("amber", "blue", "crimson", "green")
) -> Repository:
    """Return a new repository with a model ``colours`` fitted on 20 pictures of each label."""
    made = Repository(root)
    publish(made, "colours", embed_pictures({label: pictures(label, 20) for label in labels}))
    return made
