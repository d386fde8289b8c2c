"""What the serving package imports, seen in a fresh interpreter."""

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
    """All modules of topwork together import none of torch, torchvision, topwork_trainer."""
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


def test_the_public_names_are_the_light_client() -> None:
    """What ``topwork`` offers is all there, and needs neither NumPy nor anything of the server."""
    heavy = {"numpy", "onnxruntime", "dbos", "PIL", "msgspec", "structlog"}
    code = (
        "import sys, topwork\n"
        "for name in topwork.__all__: getattr(topwork, name)\n"
        f"print(sorted(topwork.__all__), sorted({heavy!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [
        "AsyncClient",
        "CallFailed",
        "ClassifyResult",
        "Client",
        "Credentials",
        "ImageResult",
        "Operation",
        "Prediction",
        "StreamResult",
        "progress",
        "rejected",
        "result",
    ]
    assert done.stdout.strip() == f"{names!r} []"


def test_commands_of_clients_import_nothing_of_the_server() -> None:
    """So that they start fast: NumPy, msgspec and ONNX Runtime take longer than all the rest."""
    modules = ("ask", "change", "classify", "health", "history", "operations", "teach")
    code = (
        "import sys\n"
        f"from topwork.cli import {', '.join(modules)}\n"
        "print(sorted({'numpy', 'msgspec', 'onnxruntime', 'PIL', 'dbos'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_former_place_of_the_client_warns() -> None:
    """Programs that import the client from where it was go on, and are told where it is."""
    sys.modules.pop("topwork.rpc.client", None)
    with pytest.warns(DeprecationWarning, match="import from topwork"):
        former = importlib.import_module("topwork.rpc.client")
    assert all(getattr(former, name) is getattr(topwork, name) for name in former.__all__)


def test_the_client_leaves_the_protocol_to_others() -> None:
    """Our client fits into a process with tritonclient, which brings a package `inference`, too."""
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


def test_serving_requires_no_torch() -> None:
    """What `pip install 'topwork[cpu]'` asks for has no torch in it, directly or through others."""
    names = required("topwork[cpu]")
    assert {"onnxruntime", "grpcio", "dbos"} <= names
    assert not {name for name in names if name.startswith(("torch", "scikit", "scipy", "nvidia"))}


def test_the_client_requires_little() -> None:
    """`pip install topwork` asks for nothing of the server."""
    names = required("topwork")
    assert {"grpcio", "protobuf", "click"} <= names
    assert not names & {"numpy", "onnx", "onnxruntime", "dbos", "pillow", "msgspec", "sqlalchemy"}


@pytest.mark.parametrize("extra", ["cpu", "cuda", "openvino", "train"])
def test_each_way_to_serve_or_train_requires_the_server(extra: str) -> None:
    """Each of these extras brings all that is imported, but for the backend of another extra."""
    assert {"numpy", "dbos", "pillow", "msgspec"} <= required(f"topwork[{extra}]")


@pytest.mark.parametrize(
    ("module", "extras"), [("topwork", "cpu"), ("topwork_trainer", "cpu,train")]
)
def test_a_command_without_its_packages_says_what_to_install(module: str, extras: str) -> None:
    """In one line, as with a bare `pip install topwork`; the client does without them."""
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


@pytest.mark.parametrize(("module", "command"), [("topwork", "serve"), ("topwork_trainer", "fit")])
def test_a_package_runs_as_its_command(module: str, command: str) -> None:
    """`python -m topwork` is `topwork`, `python -m topwork_trainer` is `topwork-train`."""
    done = subprocess.run(
        [sys.executable, "-m", module, command, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"python -m {module} {command} [OPTIONS]" in done.stdout


def required(requirement: str) -> set[str]:
    """Return the names of the packages that a requirement of topwork asks for, in the end."""
    wanted = [requirement]
    seen: set[str] = set()
    while wanted:
        name, _, extra = wanted.pop().rstrip("]").partition("[")
        if (key := f"{name}[{extra}]") not in seen:
            seen.add(key)
            wanted += _requirements(name, extra)
    return {key.partition("[")[0].lower() for key in seen}


def _requirements(name: str, extra: str) -> list[str]:
    from packaging.requirements import Requirement

    if name == "topwork":  # what is installed may be older than these sources
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
        f"{one.name}[{','.join(sorted(one.extras))}]" if one.extras else one.name
        for one in parsed
        if one.marker is None or one.marker.evaluate({"extra": extra})
    ]
