"""Imports and dependencies of the packages, checked in fresh interpreters."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import topwork

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.slow
def test_serving_package_imports_no_torch() -> None:
    """No module of topwork imports torch, torchvision, onnxscript or topwork_trainer."""
    names = [
        module.name
        for module in pkgutil.walk_packages(topwork.__path__, "topwork.")
        if not module.name.endswith("__main__")
    ]
    assert "topwork.rpc.server" in names
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'torch', 'torchvision', 'topwork_trainer', 'onnxscript'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_public_names_import_only_the_client() -> None:
    """All but ``open``, ``Model`` and ``batch`` need neither NumPy nor the server's packages."""
    heavy = {"numpy", "onnxruntime", "dbos", "PIL", "msgspec", "structlog"}
    code = (
        "import sys, topwork\n"
        "light = set(topwork.__all__) - {'Model', 'batch', 'open'}\n"
        "for name in light: getattr(topwork, name)\n"
        f"print(sorted(topwork.__all__), sorted({heavy!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [
        "AsyncClient",
        "Audio",
        "CallFailed",
        "ClassifyResult",
        "Client",
        "Credentials",
        "Embedding",
        "EvidenceMap",
        "ExplainResult",
        "ImageResult",
        "LabelledImage",
        "Model",
        "Neighbour",
        "Operation",
        "Prediction",
        "StreamResult",
        "Text",
        "batch",
        "embeddings",
        "open",
        "progress",
        "rejected",
        "result",
    ]
    assert done.stdout.strip() == f"{names!r} []"


@pytest.mark.slow
def test_client_commands_import_no_package_of_the_server() -> None:
    """Client commands start fast, without NumPy, msgspec and ONNX Runtime."""
    modules = ("add", "change", "classify", "health", "history", "models", "operations")
    code = (
        "import sys\n"
        f"from topwork.cli import {', '.join(modules)}\n"
        "print(sorted({'numpy', 'msgspec', 'onnxruntime', 'PIL', 'dbos'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_from_the_former_module_warns() -> None:
    """``topwork.rpc.client`` still has the client, with a DeprecationWarning."""
    sys.modules.pop("topwork.rpc.client", None)
    with pytest.warns(DeprecationWarning, match="import from topwork"):
        former = importlib.import_module("topwork.rpc.client")
    assert all(getattr(former, name) is getattr(topwork, name) for name in former.__all__)


@pytest.mark.slow
def test_client_does_not_register_the_inference_protocol() -> None:
    """The client works beside tritonclient, which registers the package `inference` itself."""
    code = (
        "import topwork.client.blocking, topwork.client.asynchronous, topwork.cli.commands\n"
        "from google.protobuf import descriptor_pool\n"
        "pool = descriptor_pool.Default()\n"
        "pool.FindServiceByName('topwork.v1.ClassifierService')\n"
        "try: print(pool.FindServiceByName('inference.GRPCInferenceService'))\n"
        "except KeyError: print('free')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "free"


def test_server_does_not_depend_on_torch() -> None:
    """`pip install 'topwork[cpu]'` installs no torch, not even indirectly."""
    names = required("topwork[cpu]")
    assert {"onnxruntime", "grpcio", "dbos"} <= names
    assert not {name for name in names if name.startswith(("torch", "scikit", "scipy", "nvidia"))}


def test_client_does_not_depend_on_the_server() -> None:
    """`pip install topwork` installs no package that only the server needs."""
    names = required("topwork")
    assert {"grpcio", "protobuf", "click"} <= names
    assert not names & {"numpy", "onnx", "onnxruntime", "dbos", "pillow", "msgspec", "sqlalchemy"}


@pytest.mark.parametrize("extra", ["cpu", "cuda", "openvino", "train"])
def test_extras_install_the_server(extra: str) -> None:
    """Each of these extras installs the packages that the server imports."""
    assert {"numpy", "dbos", "pillow", "msgspec"} <= required(f"topwork[{extra}]")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "extras"), [("topwork", "cpu"), ("topwork_trainer", "cpu,train")]
)
def test_command_without_its_packages_names_the_extra(module: str, extras: str) -> None:
    """After a bare `pip install topwork` a server command fails with one line; the client works."""
    code = (
        "import runpy, sys\n"
        "for name in ('numpy', 'onnxruntime', 'dbos', 'PIL', 'msgspec', 'structlog'):\n"
        "    sys.modules[name] = None\n"
        "import topwork.client.blocking, topwork.client.asynchronous, topwork.client.probe\n"
        f"sys.argv = ['topwork', {'fsck' if module == 'topwork' else 'fit'!r}, '--help']\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: this needs the package \w+: pip install 'topwork\[{extras}\]'\n", done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize(("module", "command"), [("topwork", "serve"), ("topwork_trainer", "fit")])
def test_package_runs_as_its_command(module: str, command: str) -> None:
    """`python -m topwork` is `topwork`, `python -m topwork_trainer` is `topwork-train`."""
    done = subprocess.run(
        [sys.executable, "-m", module, command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"python -m {module} {command} [OPTIONS]" in done.stdout


def required(requirement: str) -> set[str]:
    """Return the names of all direct and indirect dependencies of a requirement."""
    pending = [requirement]
    seen: set[str] = set()
    while pending:
        name, _, extra = pending.pop().rstrip("]").partition("[")
        if (key := f"{name}[{extra}]") not in seen:
            seen.add(key)
            pending += _requirements(name, extra)
    return {key.partition("[")[0].lower() for key in seen}


def _requirements(name: str, extra: str) -> list[str]:
    from packaging.requirements import Requirement

    if name == "topwork":  # the installed version may be older than these sources
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        listed = project["dependencies"] + (
            project["optional-dependencies"][extra] if extra else []
        )
    else:
        try:
            listed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return []  # for another platform or Python
    parsed = [Requirement(line) for line in listed]
    return [
        f"{item.name}[{','.join(sorted(item.extras))}]" if item.extras else item.name
        for item in parsed
        if item.marker is None or item.marker.evaluate({"extra": extra})
    ]
