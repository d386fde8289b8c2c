"""An int8 backbone embeds nearly as the fp32 one does, and is taken only where it pays."""

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
from topwork_trainer.backbones.quantise import (
    CALIBRATION_IMAGES,
    Embed,
    QuantisationError,
    calibration_sample,
    gate,
    likeness,
    quantise,
    speed_ratio,
)

CROP = 16
VNNI = "vnni" in Path("/proc/cpuinfo").read_text()
"""Whether sums of int8 products are exact here; older x86 processors saturate at 16 bits."""


def network(*, pooled: bool = False, mirrored: bool = False, wide: bool = False) -> bytes:
    """Return a small backbone such as export writes: uint8 (N, 16, 16, 3) -> float32 (N, 24).

    Four convolutions in a row, the second depthwise, then one around which a shortcut leads.
    ``pooled`` puts a maximum pooling behind the first, ``mirrored`` joins the image with a turned
    one before them (and gives the turned one's embeddings, too), ``wide`` gives the third 40
    inputs.
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
        filters *= rng.uniform(0.2, 5, (shape[0], 1, 1, 1))  # channels differ, as real ones do
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
        turned = helper.make_node("Transpose", ["image"], ["turned"], "turned", perm=[0, 2, 1, 3])
        joined = helper.make_node("Concat", ["image", "turned"], ["views"], "views", axis=0)
        nodes[:0] = [turned, joined]
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
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True)


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
    weights = {one.name for one in loaded.initializer if one.data_type == TensorProto.FLOAT}
    return [n.name for n in loaded.node if n.op_type == "Conv" and n.input[1] in weights]


def test_embeddings_stay_alike(quantised: bytes) -> None:
    """On images that it was not calibrated with, int8 embeds nearly as fp32 does."""
    batch = images(50, seed=1)
    found = likeness(embed(network())(batch), embed(quantised)(batch))
    assert found.images == 50
    assert found.min_cosine > 0.995


def test_any_number_of_images(quantised: bytes) -> None:
    """The int8 graph takes a batch of any size; an image's embedding is the same in each."""
    batch = images(5, seed=1)
    alone = [embed(quantised)(batch[row : row + 1])[0] for row in range(5)]
    np.testing.assert_allclose(embed(quantised)(batch), alone, atol=1e-5)


def test_input_and_output_stay() -> None:
    """The int8 graph has the input and the output of the fp32 one, by name, type and shape."""
    before = onnx.load_model_from_string(network()).graph
    after = onnx.load_model_from_string(quantise(network(), images(1, seed=0))).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_weights_are_int8_per_channel(quantised: bytes) -> None:
    """Each quantised convolution has int8 weights with one scale an output channel."""
    graph = onnx.load_model_from_string(quantised).graph
    tensors = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    scales = {}
    for node in graph.node:
        if node.op_type == "Conv" and (maker := makers.get(node.input[1])):
            values, scale = tensors[maker.input[0]], tensors[maker.input[1]]
            assert values.dtype == np.int8
            scales[node.name] = scale.shape
    assert scales == {"fourth": (24,), "fifth": (24,)}


def test_activations_are_uint8(quantised: bytes) -> None:
    """Activations are uint8: U8S8 is what x86 processors are fast at."""
    graph = onnx.load_model_from_string(quantised).graph
    tensors = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    zeros = {tensors[n.input[2]].dtype for n in graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {np.dtype(np.uint8)}


def test_clip_becomes_the_range(quantised: bytes) -> None:
    """A ReLU6 behind an int8 convolution is no node any more: its output's range says the same."""
    graph = onnx.load_model_from_string(quantised).graph
    assert [n.name for n in graph.node if n.op_type == "Clip"] == ["first6", "second6", "third6"]


def test_start_stays_float(quantised: bytes) -> None:
    """The first three convolutions stay float."""
    assert float_convolutions(quantised) == ["first", "second", "third"]


def test_start_of_views_stays_float() -> None:
    """What is done to the image before the first convolution may branch."""
    graph = quantise(network(mirrored=True), images(4, seed=0))
    assert float_convolutions(graph) == ["first", "second", "third"]


def test_start_ends_before_many_inputs() -> None:
    """A convolution of many inputs is faster in int8, be it the third."""
    graph = quantise(network(wide=True), images(4, seed=0))
    assert float_convolutions(graph) == ["first", "second"]


def test_nothing_stays_float_before_a_pooling() -> None:
    """Where a maximum pooling comes early, all convolutions are quantised."""
    assert float_convolutions(quantise(network(pooled=True), images(4, seed=0))) == []


def test_opset_and_ir_stay(quantised: bytes) -> None:
    """The int8 graph is plain ONNX of the opset and IR that the fp32 one has."""
    loaded = onnx.load_model_from_string(quantised)
    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.ir_version == 8
    assert [(one.domain, one.version) for one in loaded.opset_import] == [("", 18)]


def test_equal_bytes(quantised: bytes) -> None:
    """The same graph and images give the same bytes."""
    assert quantise(network(), iter(images(32, seed=0))) == quantised


def test_calibration_matters(quantised: bytes) -> None:
    """Other images give other ranges: the calibration is really used."""
    assert quantise(network(), images(32, seed=0) // 4) != quantised


def test_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No temporary file remains, no path of this machine is in the graph, nothing is printed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = quantise(network(), images(2, seed=0))
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path).encode() not in result
    assert b"topwork-" not in result
    assert capfd.readouterr() == ("", "")


def test_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an image there are no ranges; logging works again and no file remains after it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(QuantisationError, match="no image"):
        quantise(network(), [])
    assert logging.root.manager.disable == logging.NOTSET
    assert list(tmp_path.iterdir()) == []


def test_no_graph_is_refused() -> None:
    """Bytes that are no ONNX graph are refused."""
    with pytest.raises(QuantisationError, match="cannot quantise"):
        quantise(b"no graph", images(1, seed=0))


def test_nothing_to_quantise_is_refused() -> None:
    """A graph without convolutions and the like is refused, and its operators are named."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "float", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["embedding"], "mean", keepdims=0),
    ]
    graph = model(nodes, {"axes": np.array([1, 2])}, width=3)
    with pytest.raises(QuantisationError, match="Cast, ReduceMean"):
        quantise(graph, images(1, seed=0))


def test_unreadable_image_is_its_own_error() -> None:
    """An error of the images' own passes through as it is."""

    def broken() -> Iterator[Pixels]:
        yield images(1, seed=0)[0]
        raise ImageError("the image is empty (0 bytes)")

    with pytest.raises(ImageError, match="0 bytes"):
        quantise(network(), broken())


@pytest.mark.photos
def test_lite0_on_photos(flower_photos: Path, exported: Path) -> None:
    """EfficientNet-Lite0 keeps its embeddings of photos that it was not calibrated with."""
    (lite0,) = Repository(exported).backbones()
    fp32 = Repository(exported).backbone_model(lite0.digest)
    files = sorted(flower_photos.glob("*/*.jpg"))
    pixels = [
        preprocess(file.read_bytes(), lite0.preprocess) for file in files[:: len(files) // 32]
    ]
    int8 = quantise(fp32, pixels[::2])
    assert len(int8) < 0.3 * len(fp32)
    judged = np.stack(pixels[1::2])
    found = likeness(embed(fp32)(judged), embed(int8)(judged))
    assert found.mean_cosine > (0.99 if VNNI else 0.98)
    assert found.min_cosine > (0.95 if VNNI else 0.92)


def test_sample_is_even() -> None:
    """Of many images every n-th is taken, so each part of the list gives its share."""
    sample = calibration_sample(range(10 * CALIBRATION_IMAGES))
    assert sample == list(range(0, 10 * CALIBRATION_IMAGES, 10))


@pytest.mark.parametrize("count", [0, 1, CALIBRATION_IMAGES])
def test_sample_of_few_is_all(count: int) -> None:
    """Of few images all are taken."""
    assert calibration_sample(range(count)) == list(range(count))


def test_likeness_names_the_worst() -> None:
    """The smallest cosine is told apart from the mean; a length does not matter."""
    found = likeness(
        np.array([[1, 0], [0, 1]], dtype=np.float32), np.array([[2, 0], [1, 0]], dtype=np.float32)
    )
    assert (found.images, found.min_cosine, found.mean_cosine) == (2, 0.0, 0.5)


def test_dead_embedding_is_unlike() -> None:
    """An embedding of zeros is like none, rather than no number."""
    zeros, ones = np.zeros((1, 3), dtype=np.float32), np.ones((1, 3), dtype=np.float32)
    assert likeness(ones, zeros).min_cosine == 0


class Clock:
    """A clock that only the runs move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def runner(self, name: str, seconds: Callable[[int], float]) -> Embed:
        """Return a backbone of which the run after n others takes ``seconds(n)``."""

        def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.now += seconds(len(self.runs))
            self.runs.append(name)
            return np.zeros((len(batch), 1), dtype=np.float32)

        return run


def test_speed_ratio() -> None:
    """A backbone that takes a third of the time is three times as fast."""
    clock = Clock()
    fp32, int8 = clock.runner("fp32", lambda _: 3.0), clock.runner("int8", lambda _: 1.0)
    ratio = speed_ratio(fp32, int8, images(1, seed=0)[0], seconds=0, clock=lambda: clock.now)
    assert ratio == pytest.approx(3)


def test_speed_ratio_ignores_a_disturbance() -> None:
    """A slow warm-up and two runs that something else held up do not move the ratio."""
    clock = Clock()
    fp32 = clock.runner("fp32", lambda n: 100.0 if n in {0, 5} else 2.0)
    int8 = clock.runner("int8", lambda n: 50.0 if n in {1, 10} else 1.0)
    ratio = speed_ratio(fp32, int8, images(1, seed=0)[0], seconds=0, clock=lambda: clock.now)
    assert ratio == pytest.approx(2)


def test_speed_ratio_takes_turns() -> None:
    """Each backbone is as often the first of a pair as the second."""
    clock = Clock()
    fp32, int8 = clock.runner("fp32", lambda _: 1.0), clock.runner("int8", lambda _: 1.0)
    speed_ratio(fp32, int8, images(1, seed=0)[0], seconds=0, clock=lambda: clock.now)
    pairs = list(zip(clock.runs[2::2], clock.runs[3::2], strict=True))
    assert pairs[:4] == [("int8", "fp32"), ("fp32", "int8")] * 2


def right(images: int, wrong: set[int]) -> NDArray[np.bool_]:
    return np.array([row not in wrong for row in range(images)])


def test_gate_takes_what_pays() -> None:
    """An int8 backbone that is twice as fast and as accurate is taken."""
    found = gate(right(1000, {1, 2}), right(1000, {2, 3}), speed_ratio=2.0)
    assert found.taken
    assert found.loss_points == 0
    assert "2.00 times as fast" in found.why


def test_gate_allows_half_a_point() -> None:
    """A loss of 0.5 points is allowed."""
    assert gate(right(1000, set()), right(1000, set(range(5))), speed_ratio=2.0).taken


def test_gate_refuses_a_loss() -> None:
    """A loss of 0.6 points is refused, however fast it is."""
    found = gate(right(1000, set()), right(1000, set(range(6))), speed_ratio=9.0)
    assert not found.taken
    assert found.loss_points == pytest.approx(0.6)
    assert "0.60 points" in found.why


@pytest.mark.parametrize("ratio", [0.5, 1.0, float("nan")])
def test_gate_refuses_what_is_not_faster(ratio: float) -> None:
    """An int8 backbone that is not faster here is refused, however accurate it is."""
    found = gate(right(100, {1}), right(100, set()), speed_ratio=ratio)
    assert not found.taken
    assert "times as fast" in found.why


def test_gate_gain_is_a_negative_loss() -> None:
    """Where int8 is right more often the loss is negative."""
    found = gate(right(100, {1, 2}), right(100, set()), speed_ratio=2.0)
    assert found.loss_points == -2
    assert found.loss_low < -2 < found.loss_high


def test_gate_interval() -> None:
    """10 lost and 4 won of 100 give the interval of Agresti and Min: 6/102 -+ 1.96 x 0.0375."""
    found = gate(right(100, set(range(4))), right(100, set(range(4, 14))), speed_ratio=2.0)
    assert found.loss_points == pytest.approx(6)
    assert (found.loss_low, found.loss_high) == pytest.approx((-1.472, 13.236), abs=1e-3)
