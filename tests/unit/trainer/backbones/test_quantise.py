"""Quantisation to int8: similarity to fp32, structure of the graph, speed ratio, and the gate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from topwork.bundle.store import Repository
from topwork.errors import ImageError
from topwork.inputs.image import Pixels, preprocess
from topwork.runtime.backend import open_session
from topwork_trainer.backbones.precision_gate import Embed, gate, speed_ratio
from topwork_trainer.backbones.quantise import (
    CALIBRATION_IMAGES,
    QuantisationError,
    calibration_sample,
    quantise,
)

CROP = 16
VNNI = "vnni" in Path("/proc/cpuinfo").read_text()
"""True if sums of int8 products are exact; older x86 processors saturate at 16 bits."""


def network(*, pooled: bool = False, mirrored: bool = False, wide: bool = False) -> bytes:
    """Return a small backbone like those of ``export``: uint8 (N, 16, 16, 3) -> float32 (N, 24).

    Four convolutions, the second depthwise, then one with a shortcut around it. ``pooled`` adds a
    maximum pooling after the first; ``mirrored`` appends a transposed copy to the batch (and to the
    embeddings); ``wide`` gives the third convolution 40 inputs.
    """
    rng = np.random.default_rng(0)
    weights: dict[str, ArrayLike] = {
        "mean": np.full((3, 1, 1), 127, np.float32),
        "std": np.full((3, 1, 1), 64, np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
        "axes": np.array([2, 3]),
    }
    source = "views" if mirrored else "image"
    nodes = [
        helper.make_node("Transpose", [source], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], "float", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"], "centred"),
        helper.make_node("Div", ["centred", "std"], ["normal"], "normal"),
    ]

    def convolve(
        name: str, source: str, shape: tuple[int, ...], group: int = 1, *, linear: bool = False
    ) -> str:
        filters = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        filters *= rng.uniform(
            0.2, 5, (shape[0], 1, 1, 1)
        )  # scales of channels differ, as in real networks
        weights[f"{name}.weight"] = filters.astype(np.float32)
        weights[f"{name}.bias"] = rng.normal(0.5, 0.5, shape[0]).astype(np.float32)
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        pads = [shape[-1] // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [name], name, pads=pads, group=group))
        if linear:
            return name
        nodes.append(helper.make_node("Clip", [name, "low", "high"], [f"{name}6"], f"{name}6"))
        return f"{name}6"

    if mirrored:
        mirror = helper.make_node("Transpose", ["image"], ["mirror"], "mirror", perm=[0, 2, 1, 3])
        views = helper.make_node("Concat", ["image", "mirror"], ["views"], "views", axis=0)
        nodes[:0] = [mirror, views]
    channels = 40 if wide else 16
    tensor = convolve("first", "normal", (channels, 3, 3, 3))
    if pooled:
        nodes.append(helper.make_node("MaxPool", [tensor], ["pool"], "pool", kernel_shape=[2, 2]))
        tensor = "pool"
    tensor = convolve("second", tensor, (channels, 1, 3, 3), channels)
    tensor = convolve("third", tensor, (24, channels, 1, 1))
    tensor = convolve("fourth", tensor, (24, 24, 1, 1))
    added = convolve("fifth", tensor, (24, 24, 3, 3), linear=True)
    nodes.append(helper.make_node("Add", [tensor, added], ["sum"], "sum"))
    nodes.append(helper.make_node("ReduceMean", ["sum", "axes"], ["embedding"], "m", keepdims=0))
    return model(nodes, weights, width=24)


def model(nodes: list[onnx.NodeProto], weights: Mapping[str, ArrayLike], width: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", CROP, CROP, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def images(count: int, *, seed: int) -> NDArray[np.uint8]:
    """Return smooth images (count, 16, 16, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:CROP, :CROP][..., None] / CROP
    cycles_y, cycles_x, phase = rng.uniform(-2, 2, (3, count, 1, 1, 3))
    waves = np.sin(2 * np.pi * (cycles_y * y + cycles_x * x + phase))
    return np.asarray(127.5 + 127.5 * waves, dtype=np.uint8)


@pytest.fixture(scope="module")
def quantised() -> bytes:
    return quantise(network(), images(32, seed=0))


def embed(graph: bytes) -> Embed:
    return open_session(graph, output="embedding").run


def float_convolutions(graph: bytes) -> list[str]:
    """Return the names of the convolutions that have float weights."""
    loaded = onnx.load_model_from_string(graph).graph
    weights = {
        tensor.name for tensor in loaded.initializer if tensor.data_type == TensorProto.FLOAT
    }
    return [n.name for n in loaded.node if n.op_type == "Conv" and n.input[1] in weights]


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine similarities (N,) of the rows of two (N, D)."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.sum(a * b, axis=1) / lengths)


def test_int8_embeddings_are_similar_to_fp32(quantised: bytes) -> None:
    """On images not used for calibration, int8 embeddings are similar to those of fp32."""
    batch = images(50, seed=1)
    assert cosines(embed(network())(batch), embed(quantised)(batch)).min() > 0.995


def test_int8_embedding_does_not_depend_on_the_batch(quantised: bytes) -> None:
    """The int8 graph accepts batches of any size and gives an image the same embedding in each."""
    batch = images(5, seed=1)
    alone = [embed(quantised)(batch[row : row + 1])[0] for row in range(5)]
    np.testing.assert_allclose(embed(quantised)(batch), alone, atol=1e-5)


def test_input_and_output_do_not_change() -> None:
    """The int8 graph has the same input and output as fp32, by name, type and shape."""
    before = onnx.load_model_from_string(network()).graph
    after = onnx.load_model_from_string(quantise(network(), images(1, seed=0))).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_weights_are_int8_per_channel(quantised: bytes) -> None:
    """Each quantised convolution has int8 weights with one scale per output channel."""
    graph = onnx.load_model_from_string(quantised).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    scales = {}
    for node in graph.node:
        if node.op_type == "Conv" and (maker := makers.get(node.input[1])):
            values, scale = tensors[maker.input[0]], tensors[maker.input[1]]
            assert values.dtype == np.int8
            scales[node.name] = scale.shape
    assert scales == {"fourth": (24,), "fifth": (24,)}


def test_activations_are_uint8(quantised: bytes) -> None:
    """Activations are uint8, because x86 processors are fast with U8S8."""
    graph = onnx.load_model_from_string(quantised).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = {tensors[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {np.dtype(np.uint8)}


def test_clip_is_folded_into_the_range(quantised: bytes) -> None:
    """A ReLU6 after an int8 convolution is replaced by the range of its output."""
    graph = onnx.load_model_from_string(quantised).graph
    assert [n.name for n in graph.node if n.op_type == "Clip"] == ["first6", "second6", "third6"]


def test_start_stays_float(quantised: bytes) -> None:
    """The first three convolutions stay float."""
    assert float_convolutions(quantised) == ["first", "second", "third"]


def test_start_stays_float_with_two_views() -> None:
    """A branch before the first convolution does not end the float nodes."""
    graph = quantise(network(mirrored=True), images(4, seed=0))
    assert float_convolutions(graph) == ["first", "second", "third"]


def test_convolution_with_many_inputs_is_quantised() -> None:
    """A convolution with more than 32 inputs is quantised, even if it is the third."""
    graph = quantise(network(wide=True), images(4, seed=0))
    assert float_convolutions(graph) == ["first", "second"]


def test_early_pooling_quantises_all_convolutions() -> None:
    """With a maximum pooling among the first nodes all convolutions are quantised."""
    assert float_convolutions(quantise(network(pooled=True), images(4, seed=0))) == []


def test_opset_and_ir_do_not_change(quantised: bytes) -> None:
    """The int8 graph is standard ONNX with the opset and IR version of fp32."""
    loaded = onnx.load_model_from_string(quantised)
    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.ir_version == 8
    assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 18)]


def test_quantise_is_deterministic(quantised: bytes) -> None:
    """The same graph and images give the same bytes."""
    assert quantise(network(), iter(images(32, seed=0))) == quantised


def test_graph_depends_on_the_calibration(quantised: bytes) -> None:
    """Other calibration images give other ranges."""
    assert quantise(network(), images(32, seed=0) // 4) != quantised


def test_quantise_leaves_no_files_and_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No temporary file remains, the graph has no local path, and nothing is printed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = quantise(network(), images(2, seed=0))
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path).encode() not in result
    assert b"topwork-" not in result
    assert capfd.readouterr() == ("", "")


def test_quantise_refuses_an_empty_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without images there are no ranges; logging is restored and no file remains."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(QuantisationError, match="no image"):
        quantise(network(), [])
    assert logging.root.manager.disable == logging.NOTSET
    assert list(tmp_path.iterdir()) == []


def test_quantise_refuses_invalid_onnx() -> None:
    """Bytes that are not an ONNX graph are refused."""
    with pytest.raises(QuantisationError, match="cannot quantise"):
        quantise(b"no graph", images(1, seed=0))


def test_graph_without_quantisable_nodes_is_refused() -> None:
    """The error for a graph without convolutions or the like has its operators."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "float", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["embedding"], "mean", keepdims=0),
    ]
    graph = model(nodes, {"axes": np.array([1, 2])}, width=3)
    with pytest.raises(QuantisationError, match="Cast, ReduceMean"):
        quantise(graph, images(1, seed=0))


def test_unreadable_calibration_image_raises_its_error() -> None:
    """An ImageError of the calibration images is raised unchanged."""

    def broken() -> Iterator[Pixels]:
        yield images(1, seed=0)[0]
        raise ImageError("the image is empty (0 bytes)")

    with pytest.raises(ImageError, match="0 bytes"):
        quantise(network(), broken())


@pytest.mark.photos
def test_lite0_on_photos(flower_photos: Path, exported: Path) -> None:
    """int8 embeddings of photos not used for calibration are similar to those of fp32."""
    (lite0,) = Repository(exported).backbones()
    fp32 = Repository(exported).backbone_model(lite0.digest)
    files = sorted(flower_photos.glob("*/*.jpg"))
    pixels = [
        preprocess(file.read_bytes(), lite0.image_spec) for file in files[:: len(files) // 32]
    ]
    int8 = quantise(fp32, pixels[::2])
    assert len(int8) < 0.3 * len(fp32)
    others = np.stack(pixels[1::2])
    similarity = cosines(embed(fp32)(others), embed(int8)(others))
    assert similarity.mean() > (0.99 if VNNI else 0.98)
    assert similarity.min() > (0.95 if VNNI else 0.92)


def test_calibration_sample_is_evenly_spaced() -> None:
    """Every n-th of many images is in the sample."""
    sample = calibration_sample(range(10 * CALIBRATION_IMAGES))
    assert sample == list(range(0, 10 * CALIBRATION_IMAGES, 10))


@pytest.mark.parametrize("count", [0, 1, CALIBRATION_IMAGES])
def test_calibration_sample_of_few_images_has_all(count: int) -> None:
    """Few images are all in the sample."""
    assert calibration_sample(range(count)) == list(range(count))


class FakeClock:
    """Clock that only the runs of its backbones advance."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def runner(self, name: str, seconds: Callable[[int], float]) -> Embed:
        """Return a backbone whose run takes ``seconds(n)`` after n runs of any backbone."""

        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.now += seconds(len(self.runs))
            self.runs.append(name)
            return np.zeros((len(batch), 1), dtype=np.float32)

        return run


def test_speed_ratio_of_a_faster_backbone() -> None:
    """A backbone that needs a third of the time has a ratio of 3."""
    clock = FakeClock()
    fp32, int8 = clock.runner("fp32", lambda _: 3.0), clock.runner("int8", lambda _: 1.0)
    ratio = speed_ratio(fp32, int8, images(1, seed=0)[0], seconds=0, clock=lambda: clock.now)
    assert ratio == pytest.approx(3)


def test_speed_ratio_ignores_slow_runs() -> None:
    """A slow warm-up and two disturbed runs do not change the ratio."""
    clock = FakeClock()
    fp32 = clock.runner("fp32", lambda n: 100.0 if n in {0, 5} else 2.0)
    int8 = clock.runner("int8", lambda n: 50.0 if n in {1, 10} else 1.0)
    ratio = speed_ratio(fp32, int8, images(1, seed=0)[0], seconds=0, clock=lambda: clock.now)
    assert ratio == pytest.approx(2)


def test_speed_ratio_alternates_the_order() -> None:
    """Each backbone runs first in every second pair."""
    clock = FakeClock()
    fp32, int8 = clock.runner("fp32", lambda _: 1.0), clock.runner("int8", lambda _: 1.0)
    speed_ratio(fp32, int8, images(1, seed=0)[0], seconds=0, clock=lambda: clock.now)
    pairs = list(zip(clock.runs[2::2], clock.runs[3::2], strict=True))
    assert pairs[:4] == [("int8", "fp32"), ("fp32", "int8")] * 2


def right(images: int, wrong: set[int]) -> NDArray[np.bool_]:
    return np.array([row not in wrong for row in range(images)])


def test_gate_accepts_a_faster_backbone_without_loss() -> None:
    """An int8 backbone that is twice as fast and as accurate is accepted."""
    decision = gate(right(1000, {1, 2}), right(1000, {2, 3}), speed_ratio=2.0)
    assert decision.taken
    assert decision.loss_points == 0
    assert "2.00 times as fast" in decision.why


def test_gate_accepts_a_loss_of_half_a_point() -> None:
    """A loss of 0.5 points is accepted."""
    assert gate(right(1000, set()), right(1000, set(range(5))), speed_ratio=2.0).taken


def test_gate_refuses_a_larger_loss() -> None:
    """A loss of 0.6 points is refused at any speed."""
    decision = gate(right(1000, set()), right(1000, set(range(6))), speed_ratio=9.0)
    assert not decision.taken
    assert decision.loss_points == pytest.approx(0.6)
    assert "0.60 points" in decision.why


@pytest.mark.parametrize("ratio", [0.5, 1.0, float("nan")])
def test_gate_refuses_a_backbone_that_is_not_faster(ratio: float) -> None:
    """An int8 backbone that is not faster is refused at any accuracy."""
    decision = gate(right(100, {1}), right(100, set()), speed_ratio=ratio)
    assert not decision.taken
    assert "times as fast" in decision.why


def test_gate_reports_a_gain_as_negative_loss() -> None:
    """If int8 is right more often the loss is negative."""
    decision = gate(right(100, {1, 2}), right(100, set()), speed_ratio=2.0)
    assert decision.loss_points == -2
    assert decision.loss_low < -2 < decision.loss_high


def test_gate_reports_the_paired_interval() -> None:
    """10 losses and 4 wins in 100 images: Agresti and Min's interval is 6/102 -+ 1.96 x 0.0375."""
    decision = gate(right(100, set(range(4))), right(100, set(range(4, 14))), speed_ratio=2.0)
    assert decision.loss_points == pytest.approx(6)
    assert (decision.loss_low, decision.loss_high) == pytest.approx((-1.472, 13.236), abs=1e-3)
