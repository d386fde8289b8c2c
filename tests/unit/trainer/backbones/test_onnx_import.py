"""Import of ONNX files: findings in a graph, the completed graph, and files that are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper
from support import onnx_files
from support.onnx_files import (
    SIZE,
    WIDTH,
    classifier,
    features,
    kernels,
    model,
    pooled,
    save,
    tensor,
)

from topwork.errors import InvalidInput
from topwork.inputs.preprocess import PreprocessSpec
from topwork.runtime.agreement import measure
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.imported import ImportedBackbone
from topwork_trainer.backbones.onnx_import import OnnxSource, import_onnx
from topwork_trainer.backbones.parity import structured_images

IMAGES = structured_images(SIZE)
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
make = helper.make_node


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., ImportedBackbone]:
    """Return a function that saves a model and imports it."""

    def run(content: onnx.ModelProto, **options: Any) -> ImportedBackbone:
        return import_onnx("mine", OnnxSource(file=save(content, tmp_path / "m.onnx"), **options))

    return run


Import = Callable[..., ImportedBackbone]


def embed(backbone: ImportedBackbone, images: NDArray[np.uint8] = IMAGES) -> NDArray[np.float32]:
    """Return the embeddings of images."""
    return open_session(backbone.onnx, output="embedding").run(images)


def check_embeds(backbone: ImportedBackbone, mean: ArrayLike, std: ArrayLike) -> None:
    """Compare the embeddings with NumPy's."""
    expected = onnx_files.reference(IMAGES, mean, std)
    np.testing.assert_allclose(embed(backbone), expected, rtol=1e-4, atol=1e-5)


def test_classifier_becomes_a_backbone(imported: Import) -> None:
    """Its embedding is the input of the classifier, of pixels with ImageNet's mean and std."""
    backbone = imported(classifier(), licence="MIT", interpolation="bilinear")
    check_embeds(backbone, *IMAGENET)
    info = backbone.info
    assert (info.name, info.width, info.precision, info.licence) == ("mine", WIDTH, "fp32", "MIT")
    assert info.preprocess == PreprocessSpec(
        resize=SIZE, crop=SIZE, interpolation="bilinear", deep_grey="percentiles"
    )
    assert info.parity_error == 0
    assert measure(info, open_session(backbone.onnx, output="embedding").run) == 1
    assert "the classifier MatMul 'product' is cut off" in backbone.notes[2]
    assert "assumed" in backbone.notes[1]
    assert backbone.milliseconds > 0


def test_imports_of_one_file_are_equal(imported: Import) -> None:
    """The same file with the same options gives the same bytes; other options give others."""
    first = imported(classifier())
    assert imported(classifier()).onnx == first.onnx
    assert imported(classifier(), mean=(0.5, 0.5, 0.5)).info.digest != first.info.digest


def test_gemm_and_single_pixel_convolution_are_classifiers(imported: Import) -> None:
    """All forms of a last linear layer are cut off."""
    weights = [*kernels(), tensor("w", onnx_files.CLASSIFIER)]
    gemm = model([*pooled(), make("Gemm", ["e", "w"], ["y"])], weights)
    pixels = onnx_files.CLASSIFIER.T[:, :, None, None]
    convolution = model(
        [
            *features(),
            make("GlobalAveragePool", ["map"], ["means"]),
            make("Conv", ["means", "w"], ["logits"], kernel_shape=[1, 1]),
            make("Flatten", ["logits"], ["y"]),
        ],
        [*kernels(), tensor("w", pixels)],
    )
    for content in (gemm, convolution):
        check_embeds(imported(content), *IMAGENET)


def test_extractor_keeps_its_output(imported: Import) -> None:
    """Without a linear layer at the end the output is the embedding."""
    backbone = imported(model([*pooled(), make("Identity", ["e"], ["y"])], kernels()))
    check_embeds(backbone, *IMAGENET)
    assert "cut off" not in backbone.notes[2]


def test_output_option_selects_a_tensor(imported: Import) -> None:
    """Any tensor can be the embedding, also the logits and one of several outputs."""
    assert imported(classifier(), output="logits").info.width == onnx_files.CLASSES
    check_embeds(imported(classifier(), output="means"), *IMAGENET)
    check_embeds(imported(classifier(outputs=("y", "e")), output="e"), *IMAGENET)


def test_feature_map_is_averaged(imported: Import) -> None:
    """A map (N, C, H, W) or (N, H, W, C) becomes its mean."""
    last = make("Transpose", ["map"], ["y"], perm=[0, 2, 3, 1])
    check_embeds(imported(model([*features(), last], kernels())), *IMAGENET)
    check_embeds(imported(classifier(), output="map"), *IMAGENET)


def test_layout_is_found(imported: Import) -> None:
    """A graph that takes channels last gets the same pixels."""
    nodes = [make("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]), *pooled("planes")]
    content = model(nodes, kernels(), shape=("N", SIZE, SIZE, 3), outputs=("e",))
    check_embeds(imported(content), *IMAGENET)
    any_shape = model(nodes, kernels(), shape=("N", "H", "W", "C"), outputs=("e",))
    check_embeds(imported(any_shape, layout="NHWC", image_size=SIZE), *IMAGENET)


@pytest.mark.parametrize(
    ("before", "mean", "std", "text"),
    [
        ([("Mul", 1 / 255)], 0, 255, "0 to 255"),
        ([("Div", 127.5), ("Sub", 1)], 127.5, 127.5, "0 to 255"),
        ([("Sub", [124, 116, 104]), ("Div", [58, 57, 57])], (124, 116, 104), (58, 57, 57), "255"),
        ([("Sub", [0.5] * 3), ("Div", [0.25] * 3)], 127.5, 63.75, "0 to 1,"),
        ([("Sub", 120)], 120, 1, "0 to 255"),
    ],
)
def test_range_is_found(
    before: list[tuple[str, Any]], mean: Any, std: Any, text: str, imported: Import
) -> None:
    """A graph that normalises pixels itself gets them in the range that it expects."""
    nodes, weights, name = [], kernels(), "x"
    for number, (operator, values) in enumerate(before):
        shape = (3, 1, 1) if np.ndim(values) else ()
        weights.append(tensor(f"c{number}", np.array(values, np.float32).reshape(shape)))
        nodes.append(make(operator, [name, f"c{number}"], [f"n{number}"]))
        name = f"n{number}"
    backbone = imported(model([*nodes, *pooled(name)], weights, outputs=("e",)))
    check_embeds(backbone, mean, std)
    assert text in backbone.notes[1]
    assert "found" in backbone.notes[1]


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ({"value_range": 255}, (0, 0, 0), (1, 1, 1)),
        ({"value_range": 1}, (0, 0, 0), (255, 255, 255)),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}, (127.5,) * 3, (127.5,) * 3),
        ({"value_range": 255, "mean": (1, 2, 3), "std": (4, 5, 6)}, (1, 2, 3), (4, 5, 6)),
    ],
)
def test_range_can_be_told(
    options: dict[str, Any], mean: Sequence[float], std: Sequence[float], imported: Import
) -> None:
    """Range, mean and std are as told."""
    check_embeds(imported(classifier(), **options), mean, std)


def test_graph_may_take_bytes_or_half_precision(imported: Import) -> None:
    """uint8 pixels are passed unchanged; float16 ones are normalised in float32 first."""
    cast = make("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    for element, mean, std in (
        (TensorProto.UINT8, (0, 0, 0), (1, 1, 1)),
        (TensorProto.FLOAT16, *IMAGENET),
    ):
        content = model([cast, *pooled("f")], kernels(), element=element, outputs=("e",))
        expected = onnx_files.reference(IMAGES, mean, std)
        np.testing.assert_allclose(embed(imported(content)), expected, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("rows", [225, 226, 230])
@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
def test_rows_of_patches_are_pooled(rows: int, pool: Any, imported: Import) -> None:
    """CLS is the first row, the mean is that of the patches, without CLS and registers."""
    nodes = [
        *features(),
        make("Reshape", ["map", "flat"], ["columns"]),
        make("Transpose", ["columns"], ["patches"], perm=[0, 2, 1]),
        make("Gather", ["patches", "order"], ["y"], axis=1),
    ]
    prefix = rows - 225
    order = np.concatenate([np.arange(prefix), np.arange(225)])
    weights = [*kernels(), tensor("flat", np.array([0, WIDTH, 225])), tensor("order", order)]
    content = model(nodes, weights)
    if not prefix and pool != "mean":
        with pytest.raises(InvalidInput, match="225 rows are all patches, so --pool must be mean"):
            imported(content, pool=pool)
        return
    found = embed(imported(content, pool=pool))
    mean = onnx_files.reference(IMAGES, *IMAGENET)
    if pool != "cls":
        np.testing.assert_allclose(found[:, -WIDTH:], mean, rtol=1e-4, atol=1e-5)
    if pool != "mean":
        first = embed(imported(content, pool="cls"))
        assert np.abs(first - mean).max() > 0.1
        assert (found[:, :WIDTH] == first).all()
    assert found.shape[1] == (2 if pool == "both" else 1) * WIDTH


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batch_is_changed_to_any(batch: int, imported: Import) -> None:
    """Constant shapes with the batch in front are made to fit any number of images."""
    nodes = [
        *features(),
        make("Reshape", ["map", "s1"], ["m1"]),
        make("ReduceMean", ["m1"], ["m2"], axes=[2], keepdims=0),
        make("Reshape", ["m2", "s2"], ["y"]),
    ]
    weights = [
        *kernels(),
        tensor("s1", np.array([batch, WIDTH, -1])),
        tensor("s2", np.array([batch, WIDTH])),
    ]
    content = model(nodes, weights, shape=(batch, 3, SIZE, SIZE))
    check_embeds(imported(content), *IMAGENET)


def test_weights_beside_the_file_are_read(imported: Import, tmp_path: Path) -> None:
    """The backbone of a file with external data equals that of one file."""
    expected = imported(classifier()).onnx
    raw = onnx_files.KERNELS.tobytes()
    (tmp_path / "m.onnx.data").write_bytes(b"1234" + raw + b"56")
    split = onnx_files.with_data_in(classifier(), "m.onnx.data", offset=4, length=len(raw))
    assert imported(split).onnx == expected


def test_functions_and_subgraphs_are_kept(imported: Import) -> None:
    """A model-local function is inlined, and a subgraph may read outer tensors of any name."""
    function = helper.make_function(
        "own", "Half", ["a"], ["b"], [make("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    branch = helper.make_graph(
        [make("Identity", ["image"], ["embedding"])],
        "then",
        [],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
    )
    conv, _, *rest = pooled()
    nodes = [
        conv,
        make("Half", ["conv"], ["image"], domain="own"),
        make("If", ["yes"], ["map"], then_branch=branch, else_branch=branch),
        *rest,
    ]
    content = model(
        nodes, [*kernels(), tensor("yes", np.array(True))], outputs=("e",), domains=("own",)
    )
    content.functions.append(function)
    check_embeds(imported(content), *IMAGENET)


def test_quantised_graph_is_int8(imported: Import) -> None:
    """The precision of a graph with quantised tensors is int8."""
    nodes = [
        make("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        make("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        *pooled("d"),
    ]
    weights = [*kernels(), tensor("scale", np.float32(0.05)), tensor("zero", np.uint8(128))]
    assert imported(model(nodes, weights, outputs=("e",))).info.precision == "int8"


def nan_weights() -> onnx.ModelProto:
    content = classifier()
    values = onnx_files.KERNELS.copy()
    values[0, 0, 0, 0] = np.nan
    content.graph.initializer[0].CopyFrom(tensor("kernels", values))
    return content


def sparse_weights() -> onnx.ModelProto:
    content = classifier()
    sparse = content.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(tensor("s", np.ones(1, np.float32)))
    sparse.indices.CopyFrom(tensor("i", np.zeros(1, np.int64)))
    return content


def two_inputs() -> onnx.ModelProto:
    content = classifier()
    content.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    return content


def mixed_rows() -> onnx.ModelProto:
    """Return a model that subtracts the mean of the batch."""
    nodes = [
        *pooled(),
        make("ReduceMean", ["e"], ["mean"], axes=[0]),
        make("Sub", ["e", "mean"], ["y0"]),
        make("Add", ["y0", "y0"], ["y1"]),
        make("Add", ["e", "y1"], ["y"]),
    ]
    return model(nodes, kernels())


def stuck_batch() -> onnx.ModelProto:
    """Return a model whose batch is fixed by a constant that it concatenates."""
    nodes = [*pooled(), make("Concat", ["e", "token"], ["y"], axis=1)]
    weights = [*kernels(), tensor("token", np.ones((1, 2), np.float32))]
    return model(nodes, weights, shape=(1, 3, SIZE, SIZE))


def of_no_image() -> onnx.ModelProto:
    nodes = [*pooled(), make("Mul", ["e", "zero"], ["y"])]
    return model(nodes, [*kernels(), tensor("zero", np.float32(0))])


def not_finite() -> onnx.ModelProto:
    nodes = [*pooled(), make("Log", ["e"], ["l"]), make("Log", ["l"], ["y"])]
    return model(nodes, kernels())


def scalar() -> onnx.ModelProto:
    return model([*pooled(), make("ReduceMean", ["e"], ["y"], keepdims=0)], kernels())


CUSTOM = [make("Mine", ["x"], ["m"], domain="com.example"), *pooled("m")]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (classifier(outputs=("y", "e")), {}, "2 outputs, 'y', 'e': choose one with --output"),
        (classifier(), {"output": "z"}, "no tensor 'z'; its outputs are 'y', and the last"),
        (two_inputs(), {}, "2 inputs, 'x', 'mask'; it must have one"),
        (
            classifier(element=TensorProto.INT64),
            {},
            "input 'x' is int64; it must be float or uint8",
        ),
        (classifier(shape=(3, SIZE, SIZE)), {}, "input 'x' has 3 dimensions, not four"),
        (classifier(shape=("N", 1, SIZE, SIZE)), {}, r"shape \(\?, 1, 32, 32\): pass --layout"),
        (
            classifier(shape=("N", 1, SIZE, SIZE)),
            {"layout": "NCHW"},
            "input 'x' has 1 channels; it must have three",
        ),
        (classifier(shape=("N", 3, SIZE, 40)), {}, "images of 32 x 40; they must be square"),
        (classifier(shape=("N", 3, "H", "W")), {}, "any size: pass --image-size"),
        (classifier(shape=("N", 3, 90_000, 90_000)), {}, "images of 90000 pixels; 32 to 1024 are"),
        (classifier(), {"image_size": 64}, "images of 32 pixels, not of 64"),
        (nan_weights(), {}, "weights 'kernels' contain NaN"),
        (sparse_weights(), {}, "sparse weights"),
        (
            model(CUSTOM, kernels(), outputs=("e",), domains=("com.example",)),
            {},
            "operators of com",
        ),
        (model([make("NoSuch", ["x"], ["y"])]), {}, "cannot load the graph: .*NoSuch"),
        (classifier(opset=99), {}, "cannot load the graph: .*[Oo]pset"),
        (of_no_image(), {}, "output 'y' is the same for all images"),
        (not_finite(), {}, "embeddings have values that are not finite"),
        (scalar(), {}, r"output has the shape \(\), not a row per image"),
        (mixed_rows(), {}, "does not embed several images like one"),
        (stuck_batch(), {}, "fixed batch of 1, which cannot be changed: export it with a dynamic"),
        (classifier(), {"std": (1, 0, 1)}, "--std must be positive"),
        (classifier(), {"pool": "cls"}, "no rows per patch for --pool"),
        (model([], kernels()), {}, "not an ONNX model, or has no operators"),
        (onnx_files.with_data_in(classifier(), "../up"), {}, "'../up', which is not a file beside"),
        (onnx_files.with_data_in(classifier(), "/etc/passwd"), {}, "not a file beside it"),
        (onnx_files.with_data_in(classifier(), ""), {}, "not a file beside it"),
        (onnx_files.with_data_in(classifier(), "none"), {}, "none is missing"),
        (onnx_files.with_data_in(classifier(), "link"), {}, "link is no regular file"),
        (onnx_files.with_data_in(classifier(), "few", offset=9), {}, "not in 'few': it is cut off"),
        (onnx_files.with_data_in(classifier(), "few", offset=-1), {}, "it is cut off"),
        (onnx_files.with_data_in(classifier(), "few"), {}, "'kernels' are damaged"),
    ],
)
def test_unusable_files_are_refused_with_one_sentence(
    content: onnx.ModelProto,
    options: dict[str, Any],
    message: str,
    imported: Import,
    tmp_path: Path,
) -> None:
    """The error names the file and what is wrong with it."""
    (tmp_path / "few").write_bytes(b"12345678")
    (tmp_path / "secret").write_bytes(onnx_files.KERNELS.tobytes())
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=message) as raised:
        imported(content, **options)
    assert "m.onnx cannot be used: " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_bytes_have_no_mean(imported: Import) -> None:
    """A graph that takes uint8 normalises pixels itself, so no mean can be told."""
    cast = make("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    content = model([cast, *pooled("f")], kernels(), element=TensorProto.UINT8, outputs=("e",))
    with pytest.raises(InvalidInput, match="it takes uint8 pixels, so it has no --range"):
        imported(content, mean=(1, 1, 1))


@pytest.mark.parametrize("content", [b"", b"no ONNX", b"\x80\x04K\x01.", bytes(range(256))])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """A file that is no ONNX model is named as such."""
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InvalidInput, match="it is not an ONNX model"):
        import_onnx("mine", OnnxSource(file=tmp_path / "m.onnx"))


@pytest.mark.parametrize("node", range(7))
@pytest.mark.parametrize("field", ["input", "output", "op_type"])
def test_malformed_nodes_are_refused(node: int, field: str, imported: Import) -> None:
    """A node that lacks its operator, inputs or outputs is refused with one sentence."""
    content = classifier()
    content.graph.node[node].ClearField(field)
    with pytest.raises(InvalidInput, match="cannot be used: "):
        imported(content, output="e" if node < 4 else "logits" if node < 6 else "y")


def test_weights_of_another_length_are_damaged(imported: Import) -> None:
    """Weights that are too short for their shape are refused before they are used."""
    content = classifier()
    content.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(InvalidInput, match="'kernels' are damaged"):
        imported(content)
