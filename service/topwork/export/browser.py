"""Page that classifies photos in a browser, with ONNX Runtime Web and without a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from topwork.errors import InvalidInput
from topwork.export.model import Portable
from topwork.storage.files import write_file

VERSION = "1.30.0"
"""Version of onnxruntime-web that the page was tested with."""

PAGE = ("index.html", "style.css", "app.js", "resize.js")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def read_runtime(package: Path | None) -> dict[str, bytes]:
    """Return the files of ONNX Runtime Web that the page loads, by name.

    ``package`` is the folder of the npm package. Raises InvalidInput if it is not VERSION.
    """
    advice = f"run `npm install onnxruntime-web@{VERSION}`, then name node_modules/onnxruntime-web"
    if package is None:
        raise InvalidInput(f"--browser needs --onnxruntime-web: {advice}", field="onnxruntime_web")
    try:
        about = json.loads((package / "package.json").read_bytes())
        found = f"{about['name']}@{about['version']}"
        files = {name: (package / "dist" / name).read_bytes() for name in RUNTIME}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{package} is not the npm package onnxruntime-web: {advice}", field="onnxruntime_web"
        ) from error
    if found != f"onnxruntime-web@{VERSION}":
        raise InvalidInput(f"{package} is {found}: {advice}", field="onnxruntime_web")
    return files


def write_page(directory: Path, portable: Portable, runtime: Mapping[str, bytes]) -> None:
    """Write page, model and runtime to ``directory``; other files there stay. Raises OSError."""
    static = resources.files("topwork.export") / "static"
    content = {
        **{name: (static / name).read_bytes() for name in PAGE},
        **{f"onnxruntime-web/{name}": data for name, data in runtime.items()},
        "model.onnx": portable.model,
        "model.json": json.dumps(portable.facts, indent=1).encode(),
    }
    for name, data in content.items():
        write_file(directory / name, data)
