"""The command `topwork export`, and the files of the page for browsers."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import onnx
from click.testing import CliRunner, Result

from topwork.bundle.store import Repository
from topwork.cli.export import export
from topwork.errors import InvalidInput
from topwork.export.browser import RUNTIME, VERSION

DOCS = Path(__file__).parents[3] / "docs"
STATIC = resources.files("topwork.export") / "static"


def package(folder: Path, *, name: str = "onnxruntime-web", version: str = VERSION) -> Path:
    """Return a folder like that of the npm package."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    for file in RUNTIME:
        (folder / "dist" / file).write_text(f"content of {file}")
    return folder


def run(repository: Repository, *arguments: str | Path) -> Result:
    """Run the command."""
    options = ["colours", "--repository", str(repository.root), *map(str, arguments)]
    return CliRunner().invoke(export, options)


def test_command_writes_the_file(colours: Repository, tmp_path: Path) -> None:
    """It prints what the file contains, as text or JSON."""
    output = tmp_path / "new" / "colours.onnx"
    done = run(colours, output)
    assert done.exit_code == 0, done.output
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    assert done.output == f"{output}: colours revision 1, 4 labels, tiny fp32, {size}\n"
    onnx.checker.check_model(onnx.load(output), full_check=True)
    row = json.loads(run(colours, output, "--json").output)
    assert row["output"] == str(output)
    assert row["bytes"] == output.stat().st_size
    assert row["labels"] == ["amber", "blue", "crimson", "green"]


def test_command_writes_the_page(colours: Repository, tmp_path: Path) -> None:
    """Page, runtime, model and metadata are in one directory."""
    page, web = tmp_path / "page", package(tmp_path / "onnxruntime-web")
    done = run(colours, tmp_path / "c.onnx", "--browser", page, "--onnxruntime-web", web)
    assert done.exit_code == 0, done.output
    files = {str(path.relative_to(page)) for path in page.rglob("*") if path.is_file()}
    own = {"index.html", "style.css", "app.js", "resize.js", "model.onnx", "model.json"}
    assert files == own | {f"onnxruntime-web/{name}" for name in RUNTIME}
    assert (page / "model.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert json.loads((page / "model.json").read_bytes())["labels"][0] == "amber"
    for name in RUNTIME:
        assert (page / "onnxruntime-web" / name).read_text() == f"content of {name}"


def test_command_without_any_output_is_refused(colours: Repository) -> None:
    """There is nothing to write."""
    error = run(colours).exception
    assert isinstance(error, InvalidInput)
    assert str(error) == "OUTPUT is missing; name a file, or use --browser"


def test_runtime_is_pinned(colours: Repository, tmp_path: Path) -> None:
    """Another version, another package or another folder is refused; the message helps."""
    folders = {
        "is onnxruntime-web@1.2.3": package(tmp_path / "old", version="1.2.3"),
        "is onnxruntime-node@": package(tmp_path / "node", name="onnxruntime-node"),
        "is not the npm package": colours.root,
    }
    for message, folder in folders.items():
        error = run(colours, "--browser", tmp_path / "page", "--onnxruntime-web", folder).exception
        assert isinstance(error, InvalidInput)
        assert message in str(error)
        assert f"npm install onnxruntime-web@{VERSION}" in str(error)
    error = run(colours, "--browser", tmp_path / "page").exception
    assert isinstance(error, InvalidInput)
    assert "--browser needs --onnxruntime-web" in str(error)
    assert not (tmp_path / "page").exists()
    assert f"npm install onnxruntime-web@{VERSION}\n" in (DOCS / "export.md").read_text()


def test_unwritable_output_is_one_line(colours: Repository, tmp_path: Path) -> None:
    """The system's error has the path."""
    (tmp_path / "file").touch()
    done = run(colours, tmp_path / "file" / "colours.onnx")
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert "file" in done.output
    assert done.output.count("\n") == 1


def test_page_is_strict() -> None:
    """No inline code, no other host, and no text of a model becomes HTML."""
    page = (STATIC / "index.html").read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    rules = {words[0]: words[1:] for words in map(str.split, policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == ["'self'", "'wasm-unsafe-eval'"]
    assert not {"http:", "https:", "*", "'unsafe-inline'"} & {
        word for rule in rules.values() for word in rule
    }
    code = "".join((STATIC / name).read_text() for name in ("app.js", "resize.js"))
    assert "http" not in page.replace("http-equiv", "") + code.replace("https or localhost", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)
    assert not re.search(r"\son\w+=|\sstyle=|<script(?! type=\"module\" src=)", page)
