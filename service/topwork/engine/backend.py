"""ONNX Runtime: the only module that imports it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.external_data_helper import _get_all_tensors, uses_external_data

import topwork
from topwork.errors import Corrupt, NotReady

Provider = Literal["cpu", "cuda", "auto"]
S = TypeVar("S", bound=np.generic)

_CUDA = (
    "CUDAExecutionProvider",
    # The default, EXHAUSTIVE, benchmarks all algorithms again at every new batch size.
    {"cudnn_conv_algo_search": "HEURISTIC"},
)


class Session:
    """One ONNX graph, loaded. ``run`` may be called from several threads at once."""

    def __init__(self, session: ort.InferenceSession, output: str) -> None:
        self._session = session
        self._output = output
        self._input = session.get_inputs()[0]

    @property
    def on_cuda(self) -> bool:
        """Whether the graph runs on a GPU."""
        return bool(self._session.get_providers()[0] == _CUDA[0])

    def outputs(self) -> list[str]:
        """Return the names of the graph's outputs."""
        return [output.name for output in self._session.get_outputs()]

    def run(self, batch: NDArray[S]) -> NDArray[np.float32]:
        """Return the output float32 (N, ...) for a batch (N, ...), rows in input order."""
        (result,) = self.run_outputs(batch, (self._output,))
        return result

    def run_outputs(self, batch: NDArray[S], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
        """Return the named outputs, float32 (N, ...) each, for a batch (N, ...)."""
        results = self._session.run(list(outputs), {self._input.name: batch})
        return [np.asarray(result, dtype=np.float32) for result in results]


def open_session(
    model: bytes, *, output: str, provider: Provider = "cpu", threads: int = 1
) -> Session:
    """Load an ONNX graph whose one input is a batch and which has an output called ``output``.

    ``threads`` is the number of threads that one run uses on CPU; spinning is off, since it burns
    the core that another run could use. ``auto`` takes CUDA where it works. Raises NotReady if CUDA
    is asked for and does not work, Corrupt if the graph cannot be loaded, lacks the output, or
    keeps tensors in other files (which no checksum covers).
    """
    _refuse_external_data(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider != "cpu" and _CUDA[0] in ort.get_available_providers():
        providers.insert(0, _CUDA)
    try:
        session = Session(ort.InferenceSession(model, options, providers=providers), output)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise Corrupt(f"ONNX Runtime cannot load the graph: {error}") from error
    if output not in session.outputs():
        raise Corrupt(f"the graph has no output {output!r}; it has {', '.join(session.outputs())}")
    if provider == "cuda" and not session.on_cuda:
        raise _no_cuda()
    return session


def check_provider(provider: Provider) -> None:
    """Raise NotReady if ``provider`` is CUDA and this ONNX Runtime was built without it."""
    if provider == "cuda" and _CUDA[0] not in ort.get_available_providers():
        raise _no_cuda()


def _no_cuda() -> NotReady:
    return NotReady(
        "provider 'cuda' was asked for, but ONNX Runtime has no working CUDA execution "
        f"provider here (it has {', '.join(ort.get_available_providers())})",
        reason="PROVIDER_UNAVAILABLE",
    )


def _refuse_external_data(model: bytes) -> None:
    try:
        tensors = _get_all_tensors(onnx.load_model_from_string(model))
        external = [tensor.name for tensor in tensors if uses_external_data(tensor)]
    except Exception as error:  # protobuf's, which this package does not know
        raise Corrupt(f"ONNX Runtime cannot load the graph: {error}") from error
    if external:
        raise Corrupt(f"the graph keeps tensor {external[0]!r} as external data, in another file")


def software_versions() -> dict[str, str]:
    """Return the versions that decide what a graph computes, for manifests."""
    return {
        "topwork": topwork.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": str(ort.__version__),
    }
