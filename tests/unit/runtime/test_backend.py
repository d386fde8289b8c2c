"""ONNX Runtime sessions: valid graphs load, others are refused, and callers do not mix."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support import tiny

import topwork
import topwork_trainer
from topwork.errors import Corrupt, NotReady
from topwork.runtime import backend
from topwork.runtime.backend import (
    BoundSession,
    check_provider,
    open_bound_session,
    open_session,
    software_versions,
)
from topwork.runtime.providers import Provider


def patches(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the tiny backbone computes, by NumPy: the means of 4 x 4 patches."""
    planes = batch.astype(np.float32).transpose(0, 3, 1, 2).reshape(-1, 3, 4, 4, 4, 4)
    return np.asarray(planes.mean(axis=(3, 5)).reshape(len(batch), tiny.WIDTH), dtype=np.float32)


def images(count: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return random images of the tiny backbone's size."""
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_run_returns_rows_in_input_order(count: int, threads: int) -> None:
    """The output is float32, one row an image, in the order of the batch."""
    session = open_session(tiny.backbone_model(), output="embedding", threads=threads)
    found = session.run(images(count))
    assert found.dtype == np.float32
    assert found.shape == (count, tiny.WIDTH)
    np.testing.assert_allclose(found, patches(images(count)), rtol=1e-5)
    assert not session.on_gpu


def test_concurrent_runs_return_their_own_rows() -> None:
    """Runs of different sizes from many threads at once each return the caller's rows."""
    session = open_session(tiny.backbone_model(), output="embedding")
    alone = {seed: session.run(images(1 + seed % 5, seed=seed)) for seed in range(200)}

    def run(seed: int) -> bool:
        return np.array_equal(session.run(images(1 + seed % 5, seed=seed)), alone[seed])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, alone))


@pytest.mark.parametrize(
    "graph",
    [b"", b"\0garbage", tiny.backbone_model()[:-20], b"<html>"],
    ids=["empty", "garbage", "cut off", "HTML"],
)
def test_invalid_graph_is_corrupt(graph: bytes) -> None:
    """Bytes that are no graph are Corrupt."""
    with pytest.raises(Corrupt, match="cannot load the graph"):
        open_session(graph, output="embedding")


def test_unknown_operator_is_corrupt() -> None:
    """A valid protobuf graph that ONNX Runtime cannot execute is Corrupt."""
    model = onnx.load_model_from_string(tiny.backbone_model())
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(Corrupt, match="NoSuchOperator"):
        open_session(model.SerializeToString(), output="embedding")


def with_external_data(location: str) -> bytes:
    """Return a graph whose weights are in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(64 * 64 * 4))):
        weights.external_data.add(key=key, value=value)
    shape = [64, 64]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def test_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph whose weights are in a file without a digest is Corrupt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(64 * 64 * 4))
    with pytest.raises(Corrupt, match=r"(?i)external"):
        open_session(with_external_data("weights.bin"), output="y")


def external_tensor(name: str = "w") -> TensorProto:
    """Return a tensor with external data."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def graph_with_hidden_tensor(where: str) -> bytes:
    """Return a graph with external data in a place that is easily overlooked."""
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xyz")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    constant = helper.make_node("Constant", [], ["w"], value=external_tensor())
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    graph = helper.make_graph([constant, add], "g", [x], [y])
    if where == "a sparse tensor":
        sparse = onnx.SparseTensorProto(dims=[1], values=external_tensor())
        sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [0]))
        graph = helper.make_graph([add], "g", [x], [y], sparse_initializer=[sparse])
    elif where == "a subgraph":
        same = helper.make_node("Identity", ["w"], ["z"])
        branch = helper.make_graph([same], "branch", [], [z], [external_tensor()])
        test = helper.make_tensor_value_info("x", TensorProto.BOOL, [1])
        chosen = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([chosen], "g", [test], [y])
    elif where == "a function":
        functions = [helper.make_function("own", "F", ["x"], ["y"], [constant, add], opsets[:1])]
        graph = helper.make_graph(
            [helper.make_node("F", ["x"], ["y"], domain="own")], "g", [x], [y]
        )
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize("where", ["an attribute", "a sparse tensor", "a subgraph", "a function"])
@pytest.mark.parametrize("bound", [False, True])
def test_external_data_is_found_anywhere_in_the_graph(
    where: str, bound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of session check all tensors of a graph, though the file exists."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(4))
    opened = partial(open_bound_session, shape=(1,), width=1) if bound else open_session
    with pytest.raises(Corrupt, match="keeps tensor 'w' as external data"):
        opened(graph_with_hidden_tensor(where), output="y")


def test_sessions_are_made_in_one_place() -> None:
    """No other module imports ONNX Runtime, and its sessions are made where tensors are checked."""
    made = [
        (path.name, line.strip())
        for root in (Path(str(topwork.__file__)).parent, Path(str(topwork_trainer.__file__)).parent)
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if "InferenceSession(" in line
    ]
    text = "return ort.InferenceSession(model, options, providers=providers, **more)"
    assert made == [("backend.py", text)]
    assert "_refuse_external_data(model)" in inspect.getsource(backend._load)


def test_missing_output_is_corrupt() -> None:
    """A graph without the requested output is Corrupt when it is loaded."""
    with pytest.raises(Corrupt, match="nonsense"):
        open_session(tiny.backbone_model(), output="nonsense")


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime have no other execution provider, also on machines where it has."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize(
    ("provider", "help_"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("tensorrt", "TensorRT"),
        ("openvino", "onnxruntime-openvino"),
    ],
)
def test_missing_provider_is_not_ready(provider: Provider, help_: str) -> None:
    """The error lists the available providers and the requirements of the missing one."""
    for ask in (
        lambda: check_provider(provider),
        lambda: open_session(tiny.backbone_model(), output="embedding", provider=provider),
    ):
        with pytest.raises(
            NotReady, match=rf"(?s)'{provider}'.*CPUExecutionProvider.*{help_}"
        ) as e:
            ask()
        assert e.value.reason == "PROVIDER_UNAVAILABLE"


@pytest.mark.usefixtures("cpu_only")
def test_auto_falls_back_to_cpu() -> None:
    """``auto`` falls back where there is no CUDA."""
    session = open_session(tiny.backbone_model(), output="embedding", provider="auto")
    assert session.uses("cpu")
    assert not session.on_gpu
    np.testing.assert_allclose(session.run(images(2)), patches(images(2)), rtol=1e-5)


Asked = list[tuple[ort.SessionOptions, list[Any]]]


@pytest.fixture
def requested_providers(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return the providers that a session requests.

    ONNX Runtime claims to have all, and gives the CPU.
    """
    load = ort.InferenceSession
    found: Asked = []

    def noted(model: bytes, options: ort.SessionOptions, *, providers: list[Any]) -> Any:
        found.append((options, providers))
        return load(model, options, providers=["CPUExecutionProvider"])

    every = ["Tensorrt", "CUDA", "OpenVINO", "CPU"]
    named = [f"{name}ExecutionProvider" for name in every]
    monkeypatch.setattr(ort, "get_available_providers", lambda: named)
    monkeypatch.setattr(ort, "InferenceSession", noted)
    monkeypatch.setattr(backend, "available_cores", lambda: 8)
    return found


CUDA = (
    "CUDAExecutionProvider",
    {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
)
CPU = "CPUExecutionProvider"


def openvino_options(*, threads: str, streams: str) -> tuple[str, dict[str, str]]:
    """Return OpenVINO with its options: threads belong to the session, not to a run."""
    options = {
        "device_type": "CPU",
        "precision": "FP32",
        "num_of_threads": threads,
        "num_streams": streams,
    }
    return "OpenVINOExecutionProvider", options


@pytest.mark.parametrize(
    ("provider", "threads", "providers"),
    [
        ("cpu", 3, [CPU]),
        ("auto", 3, [CUDA, CPU]),
        ("cuda", 3, [CUDA, CPU]),
        ("tensorrt", 3, ["TensorrtExecutionProvider", CUDA, CPU]),
        ("openvino", 1, [openvino_options(threads="8", streams="8"), CPU]),
        ("openvino", 8, [openvino_options(threads="8", streams="1"), CPU]),
        ("openvino", 9, [openvino_options(threads="9", streams="1"), CPU]),
    ],
)
def test_session_requests_only_the_chosen_provider(
    provider: Provider, threads: int, providers: list[Any], requested_providers: Asked
) -> None:
    """Only the chosen providers are requested, the CPU last.

    A chosen one that does not work is NotReady.
    """
    refused = nullcontext() if provider in {"cpu", "auto"} else pytest.raises(NotReady)
    with refused:
        open_session(tiny.backbone_model(), output="embedding", provider=provider, threads=threads)
    ((options, found),) = requested_providers
    assert found == providers
    assert options.intra_op_num_threads == threads


@pytest.mark.parametrize(("spin", "entry"), [(False, "0"), (True, "1")])
def test_threads_spin_only_within_a_run_with_spin(
    spin: bool, entry: str, requested_providers: Asked
) -> None:
    """An idle session uses no CPU."""
    open_session(tiny.backbone_model(), output="embedding", threads=2, spin=spin)
    ((options, _),) = requested_providers
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_bound_session_returns_rows_of_each_batch() -> None:
    """The output belongs to the batch that was copied last."""
    bare = ort.InferenceSession(tiny.backbone_model(), providers=[CPU])
    bound = BoundSession(bare, "embedding", (3, 16, 16, 3), patches(images(3)).shape[1], "cpu")
    for seed in range(3):
        batch = images(3, seed=seed)
        np.testing.assert_allclose(bound.run(batch), patches(batch), rtol=1e-5)


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in ort.get_available_providers(),
    reason="onnxruntime-openvino is not installed",
)
def test_openvino_returns_the_rows_of_the_cpu() -> None:
    """Through OpenVINO the rows are the same, also for concurrent runs."""
    session = open_session(tiny.backbone_model(), output="embedding", provider="openvino")
    assert session.uses("openvino")

    def run(seed: int) -> NDArray[np.float32]:
        return session.run(images(1 + seed % 5, seed=seed))

    with ThreadPoolExecutor(8) as pool:
        for seed, found in enumerate(pool.map(run, range(50))):
            expected = patches(images(1 + seed % 5, seed=seed))
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_software_versions_are_the_installed_ones() -> None:
    """The versions are those of the software that runs."""
    versions = software_versions()
    assert versions["topwork"] == topwork.__version__
    assert versions["numpy"] == np.__version__
    assert versions["onnxruntime"] == ort.__version__
    assert all(versions.values())


@pytest.mark.slow
def test_onnx_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """Running a graph writes no file, neither in the home directory nor in a temporary one."""
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny.backbone_model())
    homes = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for home in homes.values():
        home.mkdir()
    code = (
        "import pathlib, sys\n"
        "from topwork.runtime import process\n"
        "process.configure()\n"
        "from topwork.runtime.backend import open_session\n"
        "open_session(pathlib.Path(sys.argv[1]).read_bytes(), output='embedding')\n"
    )
    given = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=given | {name: str(home) for name, home in homes.items()},
        check=True,
    )
    assert [path for home in homes.values() for path in home.rglob("*")] == []
