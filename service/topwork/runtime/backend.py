"""ONNX Runtime sessions. No other module imports ONNX Runtime."""

from __future__ import annotations

import contextlib
import functools
import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

import topwork
from topwork.errors import Corrupt, NotReady
from topwork.runtime.cores import available_cores
from topwork.runtime.providers import NAMES, NEEDS, Provider

S = TypeVar("S", bound=np.generic)

_CUDA = {
    # The default, EXHAUSTIVE, benchmarks all algorithms again at every new batch size.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The default, the next power of two, would take twice what a size needs, for each size.
    "arena_extend_strategy": "kSameAsRequested",
}


class Session:
    """A loaded ONNX graph. ``run`` may be called from several threads at once."""

    def __init__(self, session: ort.InferenceSession, output: str) -> None:
        self._session = session
        self._output = output
        self._input = session.get_inputs()[0]

    @property
    def on_gpu(self) -> bool:
        """True if the graph runs on an NVIDIA GPU."""
        return self.uses("cuda") or self.uses("tensorrt")

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the provider that the graph runs on."""
        return str(self._session.get_providers()[0])

    def uses(self, provider: Provider) -> bool:
        """Return whether the graph runs on ``provider``, which is not ``auto``."""
        return self.provider == NAMES[provider]

    def outputs(self) -> list[str]:
        """Return the names of the graph's outputs."""
        return [output.name for output in self._session.get_outputs()]

    def run(self, batch: NDArray[S]) -> NDArray[np.float32]:
        """Return the output float32 (N, ...) for a batch (N, ...), rows in input order."""
        (result,) = self.run_outputs(batch, (self._output,))
        return result

    def run_outputs(self, batch: NDArray[S], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the named outputs, float32 (N, ...) each, for a batch (N, ...)."""
        return self.run_fed({self._input.name: batch}, outputs)

    def run_fed(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Return the named outputs for a value of each of the graph's inputs, by name."""
        results = self._session.run(list(outputs), dict(feeds))
        return [np.asarray(result, dtype=np.float32) for result in results]


class BoundSession:
    """An ONNX graph on CUDA for batches of one shape. ``run`` belongs to one thread at a time.

    ONNX Runtime plans all convolutions again when a batch has another size than the last one: more
    than half a second for EfficientNet-Lite0 (onnxruntime #23006). With one size it plans once.
    Input and output stay at fixed addresses on the device, and a graph that runs there as a whole
    is launched as one CUDA graph instead of kernel by kernel.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        output: str,
        shape: tuple[int, ...],
        width: int,
        device: str = "cuda",
    ) -> None:
        self._session = session
        new = ort.OrtValue.ortvalue_from_shape_and_type
        self._input = new(shape, np.uint8, device, 0)
        self._output = new((shape[0], width), np.float32, device, 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._input)
        self._binding.bind_ortvalue_output(output, self._output)

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the output (N, D) for a batch of the session's shape, rows in input order."""
        self._input.update_inplace(batch)
        self._session.run_with_iobinding(self._binding)
        result: NDArray[np.float32] = self._output.numpy()
        return result


def open_bound_session(
    model: bytes, *, output: str, shape: tuple[int, ...], width: int
) -> BoundSession:
    """Load a graph on CUDA for batches of ``shape``, and run it once.

    Its output is (N, ``width``). ``open_session`` must have loaded the graph before.
    """
    options = _options(threads=1, spin=False)
    options.log_severity_level = 4  # one CUDA graph may be impossible
    for graph in ("1", "0"):  # the CPU runs parts of quantised graphs
        cuda = (NAMES["cuda"], {**_CUDA, "enable_cuda_graph": graph})
        try:
            session = _load(model, options, [cuda, NAMES["cpu"]], enable_fallback=0)
            bound = BoundSession(session, output, shape, width)
            bound.run(np.zeros(shape, dtype=np.uint8))
        except Corrupt:
            raise
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            failed = error
        else:
            return bound
    raise Corrupt(f"ONNX Runtime cannot run the graph on CUDA: {failed}") from failed


def open_session(
    model: bytes,
    *,
    output: str,
    provider: Provider = "cpu",
    threads: int = 1,
    spin: bool = False,
    quiet: bool = False,
) -> Session:
    """Load an ONNX graph with one input, a batch, and an output named ``output``.

    ``threads`` is the number of CPU threads that one run uses. With ``spin`` they wait for each
    other's part of a run in busy loops, which is faster if no other run needs their cores. Between
    runs no thread spins. With ``quiet`` errors are raised and not logged, too. Raises NotReady if
    ``provider`` does not work here, Corrupt if the graph cannot be loaded, lacks the output, or has
    external data (which no checksum covers).
    """
    check_provider(provider)
    if provider != "cpu":
        _find_cuda()
    options = _options(threads=threads, spin=spin)
    if quiet:
        options.log_severity_level = 4
    try:
        loaded = _load(model, options, _wanted(provider, threads))
    except Corrupt:
        raise
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise Corrupt(f"ONNX Runtime cannot load the graph: {error}") from error
    session = Session(loaded, output)
    if output not in session.outputs():
        raise Corrupt(f"the graph has no output {output!r}; it has {', '.join(session.outputs())}")
    if provider != "auto" and not session.uses(provider):  # ONNX Runtime went on without it
        raise _unavailable(provider)
    return session


def _load(
    model: bytes, options: ort.SessionOptions, providers: Sequence[Any], **more: Any
) -> ort.InferenceSession:
    """Return a session. Raises Corrupt, and the errors of ONNX Runtime."""
    _refuse_external_data(model)
    return ort.InferenceSession(model, options, providers=providers, **more)


def _options(*, threads: int, spin: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def check_provider(provider: Provider) -> None:
    """Raise NotReady if this ONNX Runtime was built without ``provider``."""
    if provider != "auto" and NAMES[provider] not in ort.get_available_providers():
        raise _unavailable(provider)


def may_use_gpu(provider: Provider) -> bool:
    """Return True if sessions of ``provider`` run on an NVIDIA GPU, if there is one."""
    chosen = {"auto": "cuda"}.get(provider, provider)
    return chosen in {"cuda", "tensorrt"} and NAMES["cuda"] in ort.get_available_providers()


@functools.cache
def _find_cuda() -> None:
    """Load CUDA and cuDNN from their packages, where ONNX Runtime's own search does not look."""
    if NAMES["cuda"] in ort.get_available_providers():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the names of missing libraries
            ort.preload_dlls()


def _unavailable(provider: Provider) -> NotReady:
    return NotReady(
        f"provider {provider!r} was asked for, but does not work here (this ONNX Runtime has "
        f"{', '.join(ort.get_available_providers())}); it needs {NEEDS[provider]}",
        reason="PROVIDER_UNAVAILABLE",
    )


def _wanted(provider: Provider, threads: int) -> list[Any]:
    """Return ONNX Runtime's providers with their options, in order of preference."""
    cuda = (NAMES["cuda"], _CUDA)
    match provider:
        case "cuda":
            chosen: list[Any] = [cuda]
        case "tensorrt":
            # The variables ORT_TENSORRT_... set its options: engine cache, shapes, precision.
            chosen = [NAMES["tensorrt"], cuda]
        case "openvino":
            # All runs of a session share its threads; each run takes one stream.
            streams = max(1, available_cores() // threads)
            chosen = [
                (
                    NAMES["openvino"],
                    {
                        "device_type": "CPU",
                        "precision": "FP32",
                        "num_of_threads": str(streams * threads),
                        "num_streams": str(streams),
                    },
                )
            ]
        case "auto" if NAMES["cuda"] in ort.get_available_providers():
            chosen = [cuda]
        case _:
            chosen = []
    return [*chosen, NAMES["cpu"]]


def _refuse_external_data(model: bytes) -> None:
    try:
        found = tensors(onnx.load_model_from_string(model))
        external = [tensor.name for tensor in found if is_external(tensor)]
    except Exception as error:  # protobuf's errors; this package does not import it
        raise Corrupt(f"ONNX Runtime cannot load the graph: {error}") from error
    if external:
        raise Corrupt(f"the graph keeps tensor {external[0]!r} as external data, in another file")


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield all tensors in a message, also those of subgraphs, functions and sparse tensors.

    ONNX's own iterator omits sparse tensors.
    """
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from tensors(part)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Return True if a tensor's values are in another file."""
    return bool(tensor.external_data) or tensor.data_location == onnx.TensorProto.EXTERNAL


def software_versions() -> dict[str, str]:
    """Return the versions of the software that computes embeddings, for manifests."""
    return {
        "topwork": topwork.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": str(ort.__version__),
    }
