"""Quantisation of a backbone to int8, and whether that pays."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from topwork.bundle.manifest import PrecisionGate
from topwork.errors import TopworkError
from topwork.inputs.image import Pixels
from topwork_trainer.fit.paired import paired

T = TypeVar("T")

CALIBRATION_IMAGES = 128
"""64 and 256 gave the same accuracy within 0.1 points."""

MOST_LOSS = 0.5
"""Percentage points of accuracy that int8 may cost."""

LEAST_SPEED = 1.05
"""Times as fast that int8 must be; less can be the clock's noise."""

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Maps images (N, crop, crop, 3), RGB, to embeddings (N, D)."""


class QuantisationError(TopworkError):
    """The backbone cannot be quantised."""

    reason = "QUANTISATION_FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How much int8 embeddings are like the fp32 ones of the same images."""

    images: int
    min_cosine: float
    mean_cosine: float


def calibration_sample(items: Sequence[T]) -> list[T]:
    """Return at most CALIBRATION_IMAGES of ``items``, evenly spaced.

    So images that are sorted by label give each label its share.
    """
    count = min(len(items), CALIBRATION_IMAGES)
    return [items[index * len(items) // count] for index in range(count)]


def quantise(model: bytes, calibration: Iterable[Pixels]) -> bytes:
    """Return the int8 graph of an fp32 backbone's, with the same input, output and metadata.

    Static quantisation in QDQ form: int8 weights a channel, uint8 activations whose ranges are the
    extremes over the ``calibration`` images (read one at a time). The normalisation, the first
    convolutions and the final pooling stay float. Equal arguments give equal bytes. Raises
    QuantisationError if there is no image, or nothing that can be quantised.

    On 2,000 photos of flowers (logistic head on each graph's own embeddings, 5 folds) accuracy went
    from 91.90 to 91.95 % with EfficientNet-Lite0, 91.55 to 91.65 with Lite1, 91.70 to 91.75 with
    Lite2, each within 0.6 points by the paired interval, 2.0 to 2.15 times as fast (one thread,
    AVX512-VNNI). What else was tried with Lite0; points lost are uncertain by 0.5:

        variant                                 points lost    cosine   times as fast
        as it is                                   -0.05        0.996        2.0
        no convolution float                       -0.15        0.994        1.5
        the last convolution float, too            -0.05        0.996        1.8
        percentile 99.9, 99.99, 99.999        0.15, 0.10, 0     0.992-0.996  2.0
        entropy                                    -0.30        0.996        2.0
        ranges averaged over images                -0.05        0.996        2.0
        symmetric or int8 activations           -0.20, -0.05    0.996        1.3, 1.2
        7-bit weights (``reduce_range``)            0.10        0.987        2.0
        one scale a tensor of weights               0.45        0.957        2.0
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    with tempfile.TemporaryDirectory(prefix="topwork-") as folder, _no_logs():
        original, prepared, result = (Path(folder, f"{name}.onnx") for name in ("in", "pre", "out"))
        original.write_bytes(model)
        try:
            # Symbolic shapes are for what ONNX's own inference cannot follow; they need sympy.
            quant_pre_process(original, prepared, skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            quantize_static(
                prepared,
                result,
                _Reader(graph.input[0].name, calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_float_start(graph),
            )
            quantised = onnx.load(result)
        except TopworkError:
            raise
        except Exception as error:  # ONNX Runtime's quantiser raises nearly every kind
            raise QuantisationError(f"ONNX Runtime cannot quantise it: {error}") from error
    if not any(node.op_type == "QuantizeLinear" for node in quantised.graph.node):
        kinds = ", ".join(sorted({node.op_type for node in quantised.graph.node}))
        raise QuantisationError(f"nothing in the graph can be quantised; it has {kinds}")
    # What the tools noted down for each other: domains that no node has, shapes, their names.
    domains = {node.domain for node in quantised.graph.node}
    used = [one for one in quantised.opset_import if one.domain in domains]
    del quantised.opset_import[:], quantised.graph.value_info[:], quantised.metadata_props[:]
    quantised.opset_import.extend(used)
    quantised.metadata_props.extend(onnx.load_from_string(model).metadata_props)
    return quantised.SerializeToString(deterministic=True)


def likeness(fp32: NDArray[np.float32], int8: NDArray[np.float32]) -> Likeness:
    """Compare embeddings (N, D) of the same images, best such as were not used to calibrate.

    Says whether the quantisation went as it should (0.99 on average and 0.95 at least are usual);
    what it costs is known only by cross-validation.
    """
    a, b = fp32.astype(np.float64), int8.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.sum(a * b, axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return Likeness(
        images=len(a), min_cosine=float(cosines.min()), mean_cosine=float(cosines.mean())
    )


def speed_ratio(
    fp32: Embed,
    int8: Embed,
    pixels: Pixels,
    *,
    seconds: float = 1.5,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Return how many times as fast ``int8`` embeds one image; both must use one thread, as served.

    The median over pairs of runs that follow each other, in turns with either first. Each is timed
    by the processor time of this thread: on a machine with 2 to 3 times as much to do as cores that
    gave 2.00 to 2.04 where the wall clock gave 1.38 to 1.89. Takes ``seconds`` and a warm-up, and
    five pairs at least.
    """
    batch = np.ascontiguousarray(pixels[None])

    def took(run: Embed) -> float:
        start = clock()
        run(batch)
        return clock() - start

    took(fp32)  # memory is allotted in the first run
    took(int8)
    ratios: list[float] = []
    until = time.monotonic() + seconds
    while len(ratios) < 5 or time.monotonic() < until:
        if len(ratios) % 2:
            slow, fast = took(fp32), took(int8)
        else:
            fast, slow = took(int8), took(fp32)
        ratios.append(slow / fast)
    return float(np.median(ratios))


def gate(
    fp32_right: NDArray[np.bool_], int8_right: NDArray[np.bool_], *, speed_ratio: float
) -> PrecisionGate:
    """Decide on int8 by whether each head was right on each of N images, both (N,), same folds.

    It is taken if the accuracy lost is at most MOST_LOSS points and it is LEAST_SPEED times as fast
    here.
    """
    found = paired(int8_right, fp32_right)
    loss, low, high = (-100 * one for one in (found.gain, found.high, found.low))
    images = found.images
    cost = f"loses {loss:.2f} points of accuracy ({low:.2f} to {high:.2f}) on {images} images"
    if loss > MOST_LOSS:
        taken, why = False, f"int8 {cost}; the limit is {MOST_LOSS}"
    elif not speed_ratio >= LEAST_SPEED:
        taken, why = False, f"int8 is {speed_ratio:.2f} times as fast here, not {LEAST_SPEED}"
    else:
        taken, why = True, f"int8 is {speed_ratio:.2f} times as fast here and {cost}"
    return PrecisionGate(
        taken=taken,
        loss_points=loss,
        loss_low=low,
        loss_high=high,
        speed_ratio=speed_ratio,
        why=why,
    )


class _Reader:
    """The calibration images as ONNX Runtime asks for them; it needs no base class."""

    def __init__(self, name: str, images: Iterable[Pixels]) -> None:
        self._name = name
        self._images = iter(images)
        self._any = False

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next image as a batch, None after the last."""
        image = next(self._images, None)
        if image is None:
            if not self._any:
                raise QuantisationError("there is no image to calibrate with")
            return None
        self._any = True
        return {self._name: image[None]}


def _float_start(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes at the image's end that stay float.

    Behind the first convolution they go to the first branch, or up to the fourth convolution or the
    first of more than 32 inputs an output: few inputs on large maps are as fast in float, and ONNX
    Runtime moves the normalisation before an int8 convolution into a layout in which it takes ten
    times as long. None, if a maximum pooling is among them: that would run on int8 maps in a layout
    in which it takes a hundred times as long (ResNet-18: 2.0 times as fast as fp32, not 2.7).
    No later node may stay float: ONNX Runtime quantises the weights of a convolution behind a
    quantised tensor by itself, with one scale a tensor (its WeightBiasQuantization).
    """
    # A Shape reads no element.
    uses = Counter(name for node in graph.node if node.op_type != "Shape" for name in node.input)
    inputs = {weight.name: weight.dims[1] for weight in graph.initializer if len(weight.dims) > 1}
    found: list[str] = []
    depth = {graph.input[0].name: 0}  # of each float tensor: convolutions before it
    for node in graph.node:
        sources = [name for name in node.input if name in depth]
        before = max((depth[name] for name in sources), default=0)
        branches = before > 0 and any(uses[name] > 1 for name in sources)
        if not sources or branches or node.op_type == "Shape":
            continue
        if node.op_type == "MaxPool":
            return []
        if node.op_type == "Conv":
            before += 1
            if before > 3 or inputs.get(node.input[1], 0) > 32:
                continue
        found.append(node.name)
        depth |= dict.fromkeys(node.output, before)
    return found


@contextmanager
def _no_logs() -> Iterator[None]:
    """Silence the quantiser, which warns at the root logger about its own choices."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
